"""Whole counts of labels per class: (k,) int64, at least 0, of a known sum."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ROUNDING = 1e-3
"""Of one label, by which float32 sums may be off."""
ENDS = 8
"""Classes from which, and to which, labels are moved in one step of the search."""


def least_counts(bias: Tensor, total: int) -> Tensor:
    """Return how many labels of each class there are at least, by the bias gradient mean(softmax) - count / total.

    No probability is below 0, so count >= -total * gradient. Noise on the update may break that: bounds that ask for more
    labels than there are, are dropped.
    """
    least = (-total * bias - ROUNDING).ceil().clamp(min=0).long()
    return least if int(least.sum()) <= total else torch.zeros_like(least)


def nearest_counts(wanted: Tensor, total: int, least: Tensor | None = None) -> Tensor:
    """Return the counts >= ``least`` of sum ``total`` that are nearest to ``wanted`` in squared distance.

    >>> nearest_counts(torch.tensor([2.6, 1.9, -0.4]), 4).tolist()
    [2, 2, 0]

    Args:
        wanted: (k,) real numbers.
        total: labels.
        least: (k,) counts of sum ``total`` at most; None for 0.
    """
    counts = torch.zeros(len(wanted), dtype=torch.int64) if least is None else least.clone()
    # The distance is convex in each count, so the greedy choice is the best one.
    for _ in range(total - int(counts.sum())):
        counts[(wanted - counts).argmax()] += 1
    return counts


def search_counts(
    cost: Callable[[Tensor], Tensor], surplus: Callable[[Tensor], Tensor], start: Tensor, least: Tensor
) -> tuple[Tensor, float]:
    """Move labels between classes, several or one at a time, as long as that lowers the cost.

    Args:
        cost: of (m, k) counts, (m,).
        surplus: of (k,) counts, (k,): how much too many there seem to be. Labels move from the classes that have most of it
            to those that have least.
        start: (k,) counts >= ``least``.
        least: (k,).

    Returns:
        Counts of the same sum, and their cost.
    """
    total = int(start.sum())
    sizes = [size for size in (16, 4, 1) if size < max(2, total)]
    counts, lowest = start, float(cost(start[None]))
    while True:
        order = surplus(counts).argsort().tolist()
        moves = []
        for size in sizes:
            for source in order[-ENDS:]:
                for goal in order[:ENDS]:
                    if goal != source and int(counts[source] - least[source]) >= size:
                        move = counts.clone()
                        move[source] -= size
                        move[goal] += size
                        moves.append(move)
        if not moves:
            return counts, lowest
        costs = cost(torch.stack(moves))
        best = int(costs.argmin())
        # Strictly lower each time, so the search ends.
        if not float(costs[best]) < lowest * (1 - 1e-9):
            return counts, lowest
        counts, lowest = moves[best], float(costs[best])
