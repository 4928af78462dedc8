"""The coordinate-wise median (Yin et al. 2018, arXiv 1803.01498, algorithm 1, option I)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedveil.fl.strategies.base import STRATEGIES
from fedveil.fl.strategies.robust import CoordinatewiseStrategy


@STRATEGIES.register("median")
@dataclass(frozen=True)
class Median(CoordinatewiseStrategy):
    """The usual median of each coordinate; of an even number of clients, the mean of the middle two."""

    def centre(self, ordered: Tensor) -> Tensor:
        """See `CoordinatewiseStrategy.centre`."""
        clients = len(ordered)
        return ordered[(clients - 1) // 2 : clients // 2 + 1].mean(dim=0)
