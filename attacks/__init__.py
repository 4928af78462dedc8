"""Attacks on client updates, and the honest scoring of what they rebuild."""

from attacks.adaptive import Adaptive, AdaptiveWeights, PerfectInversion
from attacks.base import ATTACKS, Attack, Knowledge, Observation
from attacks.floor import Floor
from attacks.inverting_gradients import InvertingGradients

__all__ = [
    "ATTACKS",
    "Adaptive",
    "AdaptiveWeights",
    "Attack",
    "Floor",
    "InvertingGradients",
    "Knowledge",
    "Observation",
    "PerfectInversion",
]
