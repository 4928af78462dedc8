"""Aggregation rules by name. One that `needs_single_updates` gets them; all others get a `Totals`."""

from __future__ import annotations

from fl.strategies.base import STRATEGIES, OptimizerState, Strategy, Totals
from fl.strategies.fedadam import FedAdam
from fl.strategies.fedavg import FedAvg
from fl.strategies.fedprox import FedProx
from fl.strategies.fedsgd import FedSGD
from fl.strategies.krum import Krum
from fl.strategies.median import Median
from fl.strategies.trimmed_mean import TrimmedMean

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
