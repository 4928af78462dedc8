"""Which trials no other trial beats, and how much of the plane they cover."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from fedveil.fl.errors import FedveilError
from fedveil.orchestrator.metrics import Direction
from fedveil.orchestrator.report.groups import TrialGroup, group_seeds
from fedveil.orchestrator.report.rows import TrialRow

TRADE_OFF: Mapping[str, Direction] = {"utility/accuracy": "max", "privacy/mse": "max"}
"""Accuracy against the worst-case reconstruction error: the plane of the tables and figures."""

Row = TypeVar("Row", bound=TrialRow)
_SIGNS: Mapping[Direction, float] = {"max": 1.0, "min": -1.0}


def competing(rows: Sequence[TrialRow]) -> list[TrialGroup]:
    """Return the settings that may be on the front: comparable under each seed, with both numbers of `TRADE_OFF`."""
    return [group for group in group_seeds(rows) if group.comparable and TRADE_OFF.keys() <= group.metrics.keys()]


def front_of(rows: Sequence[TrialRow]) -> list[TrialGroup]:
    """Return the settings that no other beats in `TRADE_OFF`: the one front of screen, figure and MLflow."""
    return pareto_front(competing(rows), TRADE_OFF)


def pareto_front(rows: Sequence[Row], objectives: Mapping[str, Direction]) -> list[Row]:
    """Return the rows that no other row beats, in their order.

    A row beats another if it is at least as good in all objectives and better in one; equal rows stay.
    Rows that lack an objective are left out.
    """
    scored = [(row, _scores(row, objectives)) for row in rows if objectives.keys() <= row.metrics.keys()]
    return [row for row, mine in scored if not any(_beats(theirs, mine) for _, theirs in scored)]


def hypervolume(rows: Sequence[TrialRow], objectives: Mapping[str, Direction], reference: Mapping[str, float]) -> float:
    """Return the area between ``reference`` and the front of two objectives (Zitzler & Thiele 1998).

    Args:
        rows: trials; those that lack an objective, or are no better than the reference in both, add nothing.
        objectives: exactly two, by metric name.
        reference: the worst acceptable value of each, for example chance accuracy and an MSE of 0.

    Raises:
        FedveilError: there are not two objectives, or ``reference`` lacks one.
    """
    if len(objectives) != 2 or not objectives.keys() <= reference.keys():
        raise FedveilError(
            "hypervolume: expected two objectives with a reference each, "
            f"got {', '.join(objectives) or 'none'} and a reference for {', '.join(reference) or 'none'}"
        )
    corner = [_SIGNS[direction] * reference[name] for name, direction in objectives.items()]
    front = sorted(_scores(row, objectives) for row in pareto_front(rows, objectives))
    area, reached = 0.0, corner[1]
    for first, second in reversed(front):  # from the best first objective; the second rises along the front
        if first > corner[0] and second > reached:
            area += (first - corner[0]) * (second - reached)
            reached = second
    return area


def _scores(row: TrialRow, objectives: Mapping[str, Direction]) -> tuple[float, ...]:
    """The objectives (see `TrialRow.score`) with the sign that makes larger better."""
    return tuple(_SIGNS[direction] * row.score(name) for name, direction in objectives.items())


def _beats(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a != b and all(x >= y for x, y in zip(a, b, strict=True))
