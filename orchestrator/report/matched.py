"""Defences compared at matched accuracy: how private is each where all are equally accurate?"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence

from fedveil.attacks.audit.figures import mse_text
from fedveil.attacks.scoring import headline_records, paired_difference_of
from fedveil.fl.messages import PrivacyRecord
from fedveil.orchestrator.report.groups import TrialGroup
from fedveil.orchestrator.report.pareto import TRADE_OFF, competing, pareto_front
from fedveil.orchestrator.report.rows import TrialRow

Records = Mapping[str, Sequence[PrivacyRecord]]
"""The records of trials, by the trial's name."""
_Mix = Sequence[tuple[float, TrialGroup]]
"""Settings with weights that add up to one: a point on the straight line between two."""
_Errors = dict[tuple[int, int], float]
"""MSE by (seed, victim)."""


def matched_line(rows: Sequence[TrialRow], records: Records | None = None) -> str:
    """Compare defences at one accuracy: the highest that every defence with several settings reaches.

    A defence's undominated settings are joined by straight lines; below the least accurate of them the line is flat,
    since the more accurate setting is to be had there too. The intervals are over victims, whose errors are mixed as
    the line mixes the settings, and paired by (seed, victim); they hold for the accuracies as they were measured.

    Args:
        rows: trials, whichever.
        records: of those trials; without them the sentence has no intervals.

    Returns:
        a sentence, empty where fewer than two defences have settings on both sides of that accuracy.
    """
    curves: dict[str, list[TrialGroup]] = defaultdict(list)
    for group in competing(rows):
        curves[group.defense].append(group)
    several = {defense: curve for defense, curve in curves.items() if len(curve) > 1}
    if not several:
        return ""
    accuracy = min(max(map(_accuracy, curve)) for curve in several.values())
    mixes = {name: _mix(curve, accuracy) for name, curve in several.items() if min(map(_accuracy, curve)) <= accuracy}
    if len(mixes) < 2:
        return ""
    errors = {name: sum(weight * group.score("privacy/mse") for weight, group in mix) for name, mix in mixes.items()}
    ranked = sorted(errors, key=lambda name: -errors[name])
    return (
        f"At accuracy {accuracy:.3f} the MSE is "
        + ", ".join(f"{mse_text(errors[name])} for {name}" for name in ranked)
        + _differences(ranked, mixes, records)
    )


def _differences(ranked: Sequence[str], mixes: Mapping[str, _Mix], records: Records | None) -> str:
    if records is None or not all(row.name in records for mix in mixes.values() for _, g in mix for row in g.members):
        return " (no interval: the victims' records are not at hand)"
    first, *others = ranked
    by_victim = {name: _mixed_errors(mix, records) for name, mix in mixes.items()}
    if not by_victim[first] or any(by_victim[name].keys() != by_victim[first].keys() for name in others):
        return " (no interval: their victims or seeds differ)"
    parts = []
    for name in others:
        ahead, low, high = paired_difference_of(by_victim[first], by_victim[name])
        ends = "" if low is None or high is None else f" [{_signed(low)}, {_signed(high)}]"
        parts.append(f"{name} by {_signed(ahead)}{ends}")
    count = len(by_victim[first])
    over = f"95 % interval, paired over {count} victims" if count > 1 else "no interval: there is one victim"
    return f"; {first} is ahead of {', of '.join(parts)} ({over})"


def _mix(curve: Sequence[TrialGroup], accuracy: float) -> _Mix:
    front = sorted(pareto_front(curve, TRADE_OFF), key=_accuracy)
    right = bisect_left(front, accuracy, key=_accuracy)
    if right == 0 or _accuracy(front[right]) == accuracy:
        return [(1.0, front[right])]
    left = front[right - 1]
    part = (accuracy - _accuracy(left)) / (_accuracy(front[right]) - _accuracy(left))
    return [(1.0 - part, left), (part, front[right])]


def _mixed_errors(mix: _Mix, records: Records) -> _Errors:
    """Return each victim's error on the line; empty where the settings had other victims."""
    per_setting = [
        (weight, {unit: error for row in group.members for unit, error in _errors(row, records[row.name]).items()})
        for weight, group in mix
    ]
    units = per_setting[0][1].keys()
    if any(errors.keys() != units for _, errors in per_setting):
        return {}
    return {unit: sum(weight * errors[unit] for weight, errors in per_setting) for unit in units}


def _errors(row: TrialRow, records: Sequence[PrivacyRecord]) -> _Errors:
    """Return the victims' errors at the audit behind ``privacy/mse``, as `TrialRow.score` counts them.

    Where the trial's error is beyond the guess without an update, each victim counts with that guess.
    """
    beyond = row.score("privacy/mse") < row.metrics["privacy/mse"]
    return {
        (record.seed, record.victim): record.baseline_mse if beyond and record.baseline_mse is not None else record.mse
        for record in headline_records(records, "mse")
    }


def _accuracy(group: TrialGroup) -> float:
    return group.metrics["utility/accuracy"]


def _signed(difference: float) -> str:
    return f"-{mse_text(-difference)}" if difference < 0 else mse_text(difference)
