"""Aggregation rules by name. One that `needs_single_updates` gets them; all others get a `Totals`."""

from __future__ import annotations

from fedveil.fl.strategies.base import STRATEGIES, OptimizerState, Strategy, Totals
from fedveil.fl.strategies.fedadam import FedAdam
from fedveil.fl.strategies.fedavg import FedAvg
from fedveil.fl.strategies.fedprox import FedProx
from fedveil.fl.strategies.fedsgd import FedSGD
from fedveil.fl.strategies.krum import Krum
from fedveil.fl.strategies.median import Median
from fedveil.fl.strategies.trimmed_mean import TrimmedMean

__all__ = [
    "STRATEGIES",
    "FedAdam",
    "FedAvg",
    "FedProx",
    "FedSGD",
    "Krum",
    "Median",
    "OptimizerState",
    "Strategy",
    "Totals",
    "TrimmedMean",
]
