"""FedAdam (Reddi et al. 2021, arXiv 2003.00295, algorithm 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedveil.fl.errors import FedveilError
from fedveil.fl.strategies.base import STRATEGIES, OptimizerState
from fedveil.fl.strategies.mean import MeanStrategy


@STRATEGIES.register("fedadam")
@dataclass(frozen=True)
class FedAdam(MeanStrategy):
    """Adam on the server, with the mean weight change in the place of the negative gradient.

    As in the paper there is no bias correction, the second moment starts at tau^2, and tau is added outside
    the root. Clients are weighted by their examples, where the algorithm as printed takes the plain mean.

    Attributes:
        server_lr: the paper's eta.
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in [0, 1).
        tau: degree of adaptivity, above 0; small adapts more.
    """

    server_lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.tau > 0):
            raise FedveilError(
                f"strategy fedadam: beta1 {self.beta1}, beta2 {self.beta2}, tau {self.tau}; "
                "the betas must be in [0, 1) and tau above 0"
            )

    def init(self, weights: Mapping[str, Tensor]) -> OptimizerState:
        """Return the moments, named ``m.<parameter>`` and ``v.<parameter>``.

        Buffers get moments too, since weights do not tell them from parameters; they are never used.
        """
        first = {f"m.{name}": torch.zeros_like(tensor) for name, tensor in weights.items()}
        second = {f"v.{name}": torch.full_like(tensor, self.tau**2) for name, tensor in weights.items()}
        return first | second

    def change(self, mean: Mapping[str, Tensor], state: OptimizerState) -> tuple[dict[str, Tensor], OptimizerState]:
        """See `MeanStrategy.change`."""
        new_state = dict(state)
        change = {}
        for name, delta in mean.items():
            m = self.beta1 * state[f"m.{name}"] + (1 - self.beta1) * delta
            v = self.beta2 * state[f"v.{name}"] + (1 - self.beta2) * delta**2
            new_state |= {f"m.{name}": m, f"v.{name}": v}
            change[name] = self.server_lr * m / (v.sqrt() + self.tau)
        return change, new_state
