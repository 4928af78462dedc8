"""How well numbers tell members from outsiders: the ROC curve's area, and its beginning (Carlini et al. 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedveil.fl.seeding import numpy_stream

FALSE_ALARMS = 0.01
RESAMPLES = 1000


@dataclass(frozen=True)
class MembershipScore:
    """How well members are told from others; 95 % bootstrap intervals over both.

    Attributes:
        auc: area under the ROC curve: how often a member scores above an outsider. 0.5 is chance.
        auc_low, auc_high: its interval.
        tpr: share of the members that are found at a false-alarm rate of at most 1 %. 0.01 is chance.
        tpr_low, tpr_high: its interval.
        members: how many were tried.
        outsiders: as many of each class.
    """

    auc: float
    auc_low: float
    auc_high: float
    tpr: float
    tpr_low: float
    tpr_high: float
    members: int
    outsiders: int


def scored(members: NDArray[np.float64], outsiders: NDArray[np.float64], *, seed: int) -> MembershipScore:
    """Score how well numbers tell members from outsiders.

    >>> import numpy as np
    >>> found = scored(np.array([3.0, 2.0, 1.0]), np.array([2.0, 0.0]), seed=0)
    >>> found.auc  # of six pairs four are right and one is a tie
    0.75

    Args:
        members: (m,) larger for likelier members, m at least 1.
        outsiders: (o,) the same, o at least 1.
        seed: of the bootstrap.
    """
    draw = numpy_stream(seed, "membership")
    again = np.array(
        [_both(draw.choice(members, len(members)), draw.choice(outsiders, len(outsiders))) for _ in range(RESAMPLES)]
    )
    (auc, tpr), ends = _both(members, outsiders), np.quantile(again, [0.025, 0.975], axis=0)
    return MembershipScore(
        auc,
        float(ends[0, 0]),
        float(ends[1, 0]),
        tpr,
        float(ends[0, 1]),
        float(ends[1, 1]),
        len(members),
        len(outsiders),
    )


def _both(members: NDArray[np.float64], outsiders: NDArray[np.float64]) -> tuple[float, float]:
    """The area under the ROC curve, ties counting half, and the hit rate at `FALSE_ALARMS`."""
    ordered = np.sort(outsiders)
    below, up_to = (np.searchsorted(ordered, members, side) for side in ("left", "right"))
    alarms = math.floor(FALSE_ALARMS * len(ordered))
    return float((below + up_to).mean() / 2 / len(ordered)), float((members > ordered[-1 - alarms]).mean())
