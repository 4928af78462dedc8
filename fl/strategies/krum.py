"""Krum and Multi-Krum (Blanchard et al. 2017, "Machine Learning with Adversaries")."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import ClientUpdate
from fedveil.fl.strategies.base import STRATEGIES
from fedveil.fl.strategies.robust import RobustStrategy


@STRATEGIES.register("krum")
@dataclass(frozen=True)
class Krum(RobustStrategy):
    """The plain mean of the ``keep`` updates that lie nearest to their nearest neighbours.

    Needs at least 2 * byzantine + 3 clients. Buffers follow the choice that the parameters made.

    Attributes:
        byzantine: the paper's f, how many wrong clients a cohort may hold, at least 0.
        keep: the paper's m; 1 is Krum, more is Multi-Krum.
    """

    byzantine: int = 0
    keep: int = 1

    def __post_init__(self) -> None:
        if self.byzantine < 0 or self.keep < 1:
            raise FedveilError(
                f"strategy krum: byzantine {self.byzantine}, keep {self.keep}; at least 0 and 1 are allowed"
            )

    def summary(self, updates: Sequence[ClientUpdate]) -> dict[str, Tensor]:
        """See `RobustStrategy.summary`."""
        clients = len(updates)
        # Of more than n - f kept updates some would be Byzantine for certain.
        needed = max(2 * self.byzantine + 3, self.keep + self.byzantine)
        if clients < needed:
            raise FedveilError(
                f"strategy krum: {clients} updates; byzantine {self.byzantine} and keep {self.keep} need at "
                f"least {needed} (2 * byzantine + 3, and keep + byzantine)"
            )
        distances = _squared_distances([update.tensors for update in updates])
        # Each update's score: its distances to the n - f - 2 others nearest to it.
        nearest = distances.sort(dim=1).values[:, : clients - self.byzantine - 2]
        kept = nearest.sum(dim=1).argsort(stable=True)[: self.keep]
        changes = [{**updates[i].tensors, **updates[i].buffers} for i in kept.tolist()]
        return {name: torch.stack([change[name] for change in changes]).mean(dim=0) for name in changes[0]}


def _squared_distances(changes: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Return (n, n) float64: squared distances between updates, infinite from each to itself."""
    total = torch.diag(torch.full((len(changes),), math.inf, dtype=torch.float64))
    for name in changes[0]:
        flat = torch.stack([change[name].flatten() for change in changes]).double().cpu()
        # Without the matrix product that torch.cdist would use: it loses small distances of large vectors.
        total += torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    return total.nan_to_num(nan=math.inf, posinf=math.inf)
