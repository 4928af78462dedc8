"""Defences compared at matched utility: how private is each where both are equally accurate?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class TradeOff(NamedTuple):
    """One trial of a defence: test accuracy and worst-case reconstruction MSE (higher is more private)."""

    accuracy: float
    mse: float


@dataclass(frozen=True)
class MatchedUtility:
    """Two defences at one accuracy.

    Attributes:
        accuracy: where both were read.
        mse_a: the first defence's worst-case reconstruction MSE there.
        mse_b: the second's.
    """

    accuracy: float
    mse_a: float
    mse_b: float

    @property
    def ratio(self) -> float:
        """``mse_a / mse_b``: above 1 the first is the more private; infinite where the second's is 0."""
        return self.mse_a / self.mse_b if self.mse_b > 0 else math.inf


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


def matched_utility(
    curve_a: Sequence[TradeOff], curve_b: Sequence[TradeOff], *, accuracy: float
) -> MatchedUtility | None:
    """Compare two defences at ``accuracy``; None where one of them has no trials on both sides of it."""
    mse_a, mse_b = mse_at_accuracy(curve_a, accuracy), mse_at_accuracy(curve_b, accuracy)
    if mse_a is None or mse_b is None:
        return None
    return MatchedUtility(accuracy, mse_a, mse_b)


def _undominated(curve: Iterable[TradeOff]) -> list[TradeOff]:
    """The trials that no other beats in both numbers, by rising accuracy."""
    front: list[TradeOff] = []
    for point in sorted(curve, reverse=True):
        if not front or point.mse > front[-1].mse:
            front.append(point)
    return front[::-1]
