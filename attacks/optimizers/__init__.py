"""Optimisers in a box: all victims advance together, each by its own objective alone."""

from fedveil.attacks.optimizers.adam import Adam, Schedule, Signs
from fedveil.attacks.optimizers.descent import Objective, Optimizer
from fedveil.attacks.optimizers.lbfgs import LBFGS

__all__ = ["LBFGS", "Adam", "Objective", "Optimizer", "Schedule", "Signs"]
