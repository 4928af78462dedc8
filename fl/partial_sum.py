"""What a chunk of clients sends together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedveil.fl.hooks import Memory
from fedveil.fl.messages import ClientUpdate
from fedveil.fl.strategies import Totals
from fedveil.fl.trust import Rejection


@dataclass(frozen=True)
class PartialSum:
    """The updates of some clients as far as they can be trusted, and the bookkeeping that goes with them.

    Attributes:
        totals: their sum; None where the strategy wants single updates, or none can be trusted.
        updates: each by itself, where the strategy wants that.
        loss_sum: of the clients' mean losses, times their examples.
        examples: behind the updates.
        bytes: that were sent.
        clients: whose updates these are.
        rejections: the updates that are not among them.
        memories: by client, what those whose updates are among them keep for their next turn, if anything.
    """

    totals: Totals | None = None
    updates: tuple[ClientUpdate, ...] = ()
    loss_sum: float = 0.0
    examples: int = 0
    bytes: int = 0
    clients: int = 0
    rejections: tuple[Rejection, ...] = ()
    memories: Mapping[int, Memory] = field(default_factory=dict)

    @classmethod
    def accepted(cls, update: ClientUpdate, loss: float, *, single: bool, memories: Mapping[int, Memory]) -> PartialSum:
        """Return what one client sends whose update can be trusted, by itself or as a sum of one."""
        return cls(
            None if single else Totals.of(update),
            (update,) if single else (),
            loss * update.examples,
            update.examples,
            update.nbytes(),
            clients=1,
            memories=memories,
        )

    @property
    def loss(self) -> float:
        """The mean over the examples."""
        return self.loss_sum / self.examples

    @classmethod
    def of(cls, parts: Sequence[PartialSum]) -> PartialSum:
        """Add up in the given order: floating-point sums depend on it."""
        totals: Totals | None = None
        for part in parts:
            if part.totals is not None:
                totals = part.totals if totals is None else totals + part.totals
        return cls(
            totals,
            tuple(update for part in parts for update in part.updates),
            sum(part.loss_sum for part in parts),
            sum(part.examples for part in parts),
            sum(part.bytes for part in parts),
            sum(part.clients for part in parts),
            tuple(rejection for part in parts for rejection in part.rejections),
            {client: memory for part in parts for client, memory in part.memories.items()},
        )
