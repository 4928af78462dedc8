"""Federated averaging (McMahan et al. 2017, arXiv 1602.05629, algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fedveil.fl.strategies.base import STRATEGIES, OptimizerState
from fedveil.fl.strategies.mean import MeanStrategy


@STRATEGIES.register("fedavg")
@dataclass(frozen=True)
class FedAvg(MeanStrategy):
    """w + server_lr * (mean weight change, weighted by examples).

    Attributes:
        server_lr: 1 is the algorithm of the paper, the mean of the clients' weights.
    """

    server_lr: float = 1.0

    def change(self, mean: Mapping[str, Tensor], state: OptimizerState) -> tuple[dict[str, Tensor], OptimizerState]:
        """See `MeanStrategy.change`."""
        return {name: delta * self.server_lr for name, delta in mean.items()}, state
