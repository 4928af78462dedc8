"""The family of rules that tolerate some wrong clients, and for that look at each update by itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import ClientUpdate
from fedveil.fl.strategies.base import OptimizerState, Strategy, Totals, moved


@dataclass(frozen=True)
class RobustStrategy(Strategy):
    """Adds a robust summary of the clients' weight changes to the weights. Clients count equally.

    Weighting by examples would let a wrong client claim as much weight as it likes.
    """

    needs_single_updates: ClassVar[bool] = True

    def step(
        self,
        weights: Mapping[str, Tensor],
        state: OptimizerState,
        totals: Totals | None,
        updates: Sequence[ClientUpdate],
    ) -> tuple[dict[str, Tensor], OptimizerState]:
        """See `Strategy.step`."""
        if not updates:
            raise FedveilError("a round ended without any update; nothing can be summarised")
        return moved(weights, self.summary(updates)), state

    @abstractmethod
    def summary(self, updates: Sequence[ClientUpdate]) -> dict[str, Tensor]:
        """Return one change per parameter and buffer name, of at least one update."""


@dataclass(frozen=True)
class CoordinatewiseStrategy(RobustStrategy):
    """A robust rule that treats each coordinate by itself, buffers like parameters."""

    def summary(self, updates: Sequence[ClientUpdate]) -> dict[str, Tensor]:
        """See `RobustStrategy.summary`."""
        changes = [{**update.tensors, **update.buffers} for update in updates]
        # torch.sort puts NaN above all numbers, so that a NaN is an extreme value like any other.
        return {name: self.centre(torch.stack([c[name] for c in changes]).sort(dim=0).values) for name in changes[0]}

    @abstractmethod
    def centre(self, ordered: Tensor) -> Tensor:
        """Return (...) from (n, ...), ascending along its first dimension."""
