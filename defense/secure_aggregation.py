"""Secure aggregation (Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedveil.defense.base import DEFENSES, Defense
from fedveil.defense.checks import whole


@DEFENSES.register("secure_aggregation")
@dataclass(frozen=True, kw_only=True)
class SecureAggregation(Defense[None]):
    """Clients mask their updates so that the server learns nothing but the sum of those of ``clients`` clients.

    The protocol itself is not run: what it leaves to be seen is that sum, weighted by examples, and an audit attacks it as
    the update of one batch that holds the images of all its clients. Weights and accuracy are those without it. What is
    sent is as long as the whole model, whatever was pruned before: masks have no zeros, which `cost/update_bytes` does not
    count. A server that lets its own clients take part can subtract what they sent; ``clients`` are the honest ones.

    Attributes:
        clients: honest clients in a sum, at least 2.
    """

    dial: ClassVar[str] = "clients"

    clients: int = 8

    def __post_init__(self) -> None:
        whole("secure_aggregation", clients=(self.clients, 2))

    @property
    def summed(self) -> int:
        """See `Defense.summed`."""
        return self.clients
