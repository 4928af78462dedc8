"""Defences compared at matched utility: how private is each where both are equally accurate?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class TradeOff(NamedTuple):
    """One trial of a defence: test accuracy and worst-case reconstruction MSE (higher is more private)."""

    accuracy: float
    mse: float


def mse_at_accuracy(curve: Sequence[TradeOff], accuracy: float) -> float | None:
    """Return the MSE of a defence at ``accuracy``, or None outside the accuracies that its trials cover.

    Its undominated trials are joined by straight lines; below the least accurate of them the curve is flat,
    since the more accurate trial is to be had there too.
    """
    accuracies = [point.accuracy for point in curve]
    if not accuracies or not min(accuracies) <= accuracy <= max(accuracies):
        return None
    front = _undominated(curve)
    return float(np.interp(accuracy, [p.accuracy for p in front], [p.mse for p in front]))


def _undominated(curve: Iterable[TradeOff]) -> list[TradeOff]:
    """The trials that no other beats in both numbers, by rising accuracy."""
    front: list[TradeOff] = []
    for point in sorted(curve, reverse=True):
        if not front or point.mse > front[-1].mse:
            front.append(point)
    return front[::-1]
