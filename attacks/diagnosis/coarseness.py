"""How many different values an update holds: few where it was quantised."""

from __future__ import annotations

from torch import Tensor

from fedveil.fl.messages import ClientUpdate

ENOUGH = 1024
"""Entries below which the number of distinct values tells nothing."""
COARSE = 256
"""Distinct values that make up a coarse tensor, at most."""


def large_tensors(update: ClientUpdate) -> list[Tensor]:
    """Return what is not 0 of each tensor that has enough of it."""
    sent = [tensor[tensor != 0] for tensor in update.tensors.values()]
    return [tensor for tensor in sent if tensor.numel() >= ENOUGH]


def coarseness(update: ClientUpdate) -> int | None:
    """Return the distinct values of the large tensor that has most of them; None if those are more than coarse ones have."""
    counts = [len(tensor.unique()) for tensor in large_tensors(update)]
    return max(counts) if counts and max(counts) <= COARSE else None
