"""Moving a confidence vector by no more than a budget, without moving its largest entry from its place."""

from __future__ import annotations

import torch
from torch import Tensor

MARGIN = 0.05
"""The largest entry of a candidate leads all others by at least this share."""


def candidate(scores: Tensor, top: Tensor | None) -> Tensor:
    """Return points of the simplex, (n, k), to move towards.

    >>> candidate(torch.tensor([[0.0, 2.0]]), torch.tensor([0]))
    tensor([[0.5250, 0.4750]])

    Args:
        scores: (n, k) of any size; the points are their softmax.
        top: (n,) the entry that has to be the largest: it gets the score of the best, and `MARGIN` of the whole. None for
            no such rule.
    """
    if top is None:
        return scores.softmax(1)
    raised = scores.scatter(1, top[:, None], scores.max(1, keepdim=True).values)
    crown = torch.zeros_like(scores).scatter(1, top[:, None], 1.0)
    return (1 - MARGIN) * raised.softmax(1) + MARGIN * crown


def moved(confidences: Tensor, towards: Tensor, budget: float) -> Tensor:
    """Move points of the simplex towards others, by ``budget`` in L1 norm, or all the way where that is shorter.

    The way is straight, so every point on it is in the simplex. If both ends have their largest entry in the same place, so
    has every point between them; if the far end leads by a margin, so does every point but the near end.

    >>> moved(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]]), 0.2)
    tensor([[0.9000, 0.1000]])

    Args:
        confidences: (n, k).
        towards: (n, k).
        budget: L1 distance, above 0.
    """
    way = towards - confidences
    length = way.abs().sum(1, keepdim=True).clamp_min(1e-12)
    return confidences + (budget / length).clamp(max=1.0) * way


def as_logits(confidences: Tensor, like: Tensor) -> Tensor:
    """Return logits whose softmax are these confidences, in the type of ``like``.

    No entry counts as less than the smallest normal number of that type, whose logarithm is finite.
    """
    return confidences.clamp_min(torch.finfo(like.dtype).tiny).log().to(like.dtype)
