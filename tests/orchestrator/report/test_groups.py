from __future__ import annotations

import math
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedveil.orchestrator.report import TrialRow, front_of, group_seeds


def trial(
    name: str, seed: int, *, error: float = 0.01, accuracy: float = 0.8, status: str = "FINISHED", **others: float
) -> TrialRow:
    metrics = {
        "utility/accuracy": accuracy,
        "privacy/mse": error,
        "privacy/complete": 1.0,
        "privacy/baseline_mse": 0.02,
    }
    more = {key.replace("__", "/"): value for key, value in others.items()}
    return TrialRow(name, status, {"defense.name": "latent", "seed": seed}, {**metrics, **more})


def test_trials_that_differ_in_their_seed_only_are_one_setting() -> None:
    rows = [
        trial("a-seed0", 0, error=0.01),
        trial("b-seed0", 0),
        trial("a-seed1", 1, error=0.02, accuracy=0.9),
        trial("a-seed2", 2, status="FAILED"),
    ]
    first, second = group_seeds(rows)
    assert (first.name, [row.name for row in first.members]) == ("a", ["a-seed0", "a-seed1"])
    assert (second.name, second.members) == ("b-seed0", (rows[1],))
    assert first.metrics["privacy/mse"] == pytest.approx(0.015)
    assert first.metrics["utility/accuracy"] == pytest.approx(0.85)
    assert (first.defense, "seed" in first.params) == ("latent", False)


def test_a_search_may_sweep_the_seed_itself() -> None:
    (group,) = group_seeds([trial("seed=0", 0), trial("seed=1", 1)])
    assert (group.name, len(group.members)) == ("latent", 2)


def test_a_trial_that_was_repeated_under_its_seed_begins_another_group() -> None:
    rows = [trial("a-seed0", 0), trial("a-seed1", 1), trial("a-seed0", 0, error=0.3), trial("a-seed1", 1, error=0.3)]
    assert [group.members for group in group_seeds(rows)] == [tuple(rows[:2]), tuple(rows[2:])]
    other = TrialRow(rows[0].name, "FINISHED", {**rows[0].params, "fl.rounds": 9, "seed": 1}, rows[0].metrics)
    assert len(group_seeds([rows[0], other])) == 2


def test_a_metric_that_a_seed_lacks_is_absent_and_one_incomplete_trial_keeps_its_setting_out() -> None:
    read, unread = trial("a-seed0", 0, privacy__attacker_accuracy=0.7), trial("a-seed1", 1)
    (group,) = group_seeds([read, unread])
    assert "privacy/attacker_accuracy" not in group.metrics
    assert front_of([read, unread]) == [group]
    assert front_of([read, trial("a-seed1", 1, privacy__complete=0.0)]) == []


def test_each_trial_is_capped_at_its_own_guess_before_the_mean() -> None:
    (group,) = group_seeds([trial("a-seed0", 0, error=0.05), trial("a-seed1", 1, error=0.01)])
    assert group.score("privacy/mse") == pytest.approx((0.02 + 0.01) / 2)
    assert group.score("utility/accuracy") == pytest.approx(0.8)


def test_intervals_worked_by_hand() -> None:
    rows = [
        trial("a-seed0", 0, error=0.010, accuracy=0.8, privacy__mse_low=0.007, privacy__mse_high=0.015),
        trial("a-seed1", 1, error=0.020, accuracy=0.9, privacy__mse_low=0.016, privacy__mse_high=0.032),
    ]
    assert rows[0].interval("privacy/mse") == (0.007, 0.015)
    (group,) = group_seeds(rows)
    # 3 and 4 below make 5, halved; 5 and 12 above make 13, halved
    assert group.interval("privacy/mse") == pytest.approx((0.015 - 0.0025, 0.015 + 0.0065))
    # Student's t with one degree of freedom is 12.7062; the standard error is 0.05
    assert group.interval("utility/accuracy") == pytest.approx((0.85 - 12.7062 * 0.05, 1.0), abs=1e-5)
    assert group.interval("utility/auc") is None
    (alone,) = group_seeds(rows[:1])
    assert alone.interval("privacy/mse") == pytest.approx((0.007, 0.015))
    assert alone.interval("utility/accuracy") is None
    (half,) = group_seeds([rows[0], trial("a-seed1", 1)])
    assert half.interval("privacy/mse") is None


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.1), st.floats(0, 0.1)), min_size=1, max_size=5))
def test_a_groups_interval_holds_its_mean_and_is_no_wider_than_the_widest(
    parts: list[tuple[float, float, float]],
) -> None:
    rows = [
        trial(f"a-seed{n}", n, error=mean, privacy__mse_low=mean - below, privacy__mse_high=mean + above)
        for n, (mean, below, above) in enumerate(parts)
    ]
    (group,) = group_seeds(rows)
    ends = group.interval("privacy/mse")
    assert ends is not None
    mean = fmean(row.metrics["privacy/mse"] for row in rows)
    below, above = mean - ends[0], ends[1] - mean
    assert -1e-12 <= below <= max(part[1] for part in parts) / math.sqrt(len(parts)) + 1e-9
    assert -1e-12 <= above <= max(part[2] for part in parts) / math.sqrt(len(parts)) + 1e-9
