from __future__ import annotations

from fedveil.orchestrator.report import TrialRow, front_of, group_seeds
from fedveil.orchestrator.report.marks import COLLAPSED, INCOMPLETE, PARETO, WEAK, marks_of

GOOD = {"utility/accuracy": 0.9, "privacy/mse": 0.01, "privacy/complete": 1.0}
BAD = {"utility/accuracy": 0.9, "privacy/mse": 0.5, "defense/collapsed": 1.0, "attack/strongest/misfit": 0.9}


def test_what_wins_is_starred_unless_it_is_alone() -> None:
    rows = [TrialRow("a", "FINISHED", {}, GOOD), TrialRow("b", "FINISHED", {}, BAD)]
    good, bad = group_seeds(rows)
    front = front_of(rows)
    assert marks_of(good, front, alone=False) == (PARETO,)
    assert marks_of(good, front, alone=True) == ()
    assert marks_of(bad, front, alone=False) == (INCOMPLETE, COLLAPSED, WEAK)
