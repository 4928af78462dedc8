"""What every aggregation rule shares: the partial sum of updates, the base class and the table of names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import ClientUpdate, UpdateKind
from fedveil.fl.registry import Registry

OptimizerState = dict[str, Tensor]
"""What a rule carries from round to round, by names of its own; empty for most."""


@dataclass(frozen=True)
class Totals:
    """A sum over clients, weighted by their examples. It adds, so that workers can send partial sums.

    Floating-point addition is not associative: whoever wants equal bits must add in a fixed order.

    Attributes:
        tensors: by parameter name, the sum of examples * update.
        buffers: by buffer name, likewise.
        examples: the sum of the weights.
        updates: number of clients.
    """

    tensors: dict[str, Tensor]
    buffers: dict[str, Tensor]
    examples: int
    updates: int

    @classmethod
    def of(cls, update: ClientUpdate) -> Totals:
        """Return the sum that holds one client only."""
        return cls(
            tensors={name: tensor * update.examples for name, tensor in update.tensors.items()},
            buffers={name: buffer * update.examples for name, buffer in update.buffers.items()},
            examples=update.examples,
            updates=1,
        )

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            tensors=added(self.tensors, other.tensors),
            buffers=added(self.buffers, other.buffers),
            examples=self.examples + other.examples,
            updates=self.updates + other.updates,
        )

    def mean(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the weighted means of the parameters' and of the buffers' updates."""
        return (
            {name: tensor / self.examples for name, tensor in self.tensors.items()},
            {name: buffer / self.examples for name, buffer in self.buffers.items()},
        )


def added(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``left + right`` by name.

    Raises:
        FedveilError: the names differ.
    """
    if left.keys() != right.keys():
        odd = sorted(left.keys() ^ right.keys())
        raise FedveilError(f"updates do not fit together: {', '.join(odd[:4])} on one side only")
    return {name: tensor + right[name] for name, tensor in left.items()}


def moved(weights: Mapping[str, Tensor], change: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``weights + change`` by name; weights without a change, those of frozen layers, stay as they are.

    Raises:
        FedveilError: a change is of no weight.
    """
    if odd := sorted(change.keys() - weights.keys()):
        raise FedveilError(f"an update does not fit the weights: they lack {', '.join(odd[:4])}")
    return {name: weight + change[name] if name in change else weight for name, weight in weights.items()}


@dataclass(frozen=True)
class Strategy(ABC):
    """An aggregation rule: how the server makes new weights of a round's updates.

    >>> import dataclasses, fedveil as fv
    >>> @dataclasses.dataclass(frozen=True)
    ... class StandStill(fv.Strategy):
    ...     def step(self, weights, state, totals, updates):
    ...         return dict(weights), state
    >>> StandStill().step({'w': 1.0}, {}, None, [])
    ({'w': 1.0}, {})


    Attributes:
        name: as it is registered.
        needs_single_updates: the rule wants each update by itself; otherwise a `Totals` is enough.
        local_kind: what clients compute for it.
    """

    name: ClassVar[str]
    needs_single_updates: ClassVar[bool] = False
    local_kind: ClassVar[UpdateKind] = UpdateKind.DELTA

    @property
    def proximal(self) -> float:
        """The factor mu of the clients' extra loss term mu/2 |w - w_server|^2."""
        return 0.0

    def init(self, weights: Mapping[str, Tensor]) -> OptimizerState:
        """Return the rule's state before the first round."""
        return {}

    @abstractmethod
    def step(
        self,
        weights: Mapping[str, Tensor],
        state: OptimizerState,
        totals: Totals | None,
        updates: Sequence[ClientUpdate],
    ) -> tuple[dict[str, Tensor], OptimizerState]:
        """Return the new weights and the new state. The arguments stay as they are.

        Args:
            weights: parameters and floating-point buffers by name, as they were sent to the clients.
            state: from `init` or the last step.
            totals: the sum over the round's clients; None where the rule `needs_single_updates`.
            updates: the round's updates where the rule `needs_single_updates`; otherwise unused.

        Raises:
            FedveilError: the updates are too few for the rule, or do not fit the weights.
        """


STRATEGIES: Registry[type[Strategy]] = Registry("strategy")
