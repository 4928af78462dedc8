"""The coordinate-wise trimmed mean (Yin et al. 2018, arXiv 1803.01498, algorithm 1, option II)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from fedveil.fl.errors import FedveilError, SettingError
from fedveil.fl.strategies.base import STRATEGIES
from fedveil.fl.strategies.robust import CoordinatewiseStrategy


@STRATEGIES.register("trimmed_mean")
@dataclass(frozen=True)
class TrimmedMean(CoordinatewiseStrategy):
    """The mean of each coordinate without the largest and the smallest ``trim`` of the clients.

    Attributes:
        trim: fraction cut off on each side, in [0, 0.5). It is rounded up to whole clients, so that a small
            cohort is not left without protection.
    """

    trim: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.trim < 0.5:
            raise SettingError("strategy trimmed_mean", "trim", self.trim, "it must be in [0, 0.5)")

    def centre(self, ordered: Tensor) -> Tensor:
        """See `CoordinatewiseStrategy.centre`."""
        clients = len(ordered)
        # 0.07 * 100 is a hair above 7 in floating point; that must not cut off an eighth client.
        cut = math.ceil(self.trim * clients - 1e-9)
        if 2 * cut >= clients:
            raise FedveilError(
                f"strategy trimmed_mean: trim {self.trim} cuts {cut} of {clients} updates on each side and "
                "leaves none; lower trim or let more clients take part"
            )
        return ordered[cut : clients - cut].mean(dim=0)
