"""The family of rules that need the weighted mean update only."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fedveil.fl.errors import FedveilError, SettingError
from fedveil.fl.messages import ClientUpdate
from fedveil.fl.strategies.base import OptimizerState, Strategy, Totals, moved


@dataclass(frozen=True)
class MeanStrategy(Strategy):
    """Moves the weights by a function of the mean update. Buffers take their plain mean change.

    BatchNorm statistics are estimates, not steps of an optimiser: no server learning rate applies to them.

    Attributes:
        server_lr: the server's learning rate, above 0.
    """

    server_lr: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.server_lr < float("inf"):
            raise SettingError(f"strategy {self.name}", "server_lr", self.server_lr, "it must be above 0 and finite")

    def step(
        self,
        weights: Mapping[str, Tensor],
        state: OptimizerState,
        totals: Totals | None,
        updates: Sequence[ClientUpdate],
    ) -> tuple[dict[str, Tensor], OptimizerState]:
        """See `Strategy.step`."""
        if totals is None:
            raise FedveilError("a round ended without any update; nothing can be averaged")
        mean, buffers = totals.mean()
        change, new_state = self.change(mean, state)
        return moved(weights, {**change, **buffers}), new_state

    @abstractmethod
    def change(self, mean: Mapping[str, Tensor], state: OptimizerState) -> tuple[Mapping[str, Tensor], OptimizerState]:
        """Return what to add to the parameters, by name, and the new state."""
