"""FedSGD (McMahan et al. 2017, arXiv 1602.05629, section 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedveil.fl.messages import UpdateKind
from fedveil.fl.strategies.base import STRATEGIES, OptimizerState
from fedveil.fl.strategies.mean import MeanStrategy


@STRATEGIES.register("fedsgd")
@dataclass(frozen=True)
class FedSGD(MeanStrategy):
    """One gradient step of the server: w - server_lr * (mean gradient, weighted by examples).

    Attributes:
        server_lr: the step's learning rate.
    """

    local_kind: ClassVar[UpdateKind] = UpdateKind.GRADIENT
    server_lr: float = 0.1

    def change(self, mean: Mapping[str, Tensor], state: OptimizerState) -> tuple[dict[str, Tensor], OptimizerState]:
        """See `MeanStrategy.change`."""
        return {name: gradient * -self.server_lr for name, gradient in mean.items()}, state
