import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedveil.attacks.scoring import (
    METRICS,
    JudgeQuality,
    headline_attack,
    headline_interval,
    headline_records,
    mean_ci,
    paired_difference,
    paired_difference_of,
    per_victim,
    summarise,
)
from fedveil.attacks.scoring.statistics import FEW
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import PrivacyRecord, ThreatModel

BASE = PrivacyRecord(
    attack="inverting_gradients",
    threat_model=ThreatModel(),
    seed=0,
    round=0,
    client=0,
    victim=0,
    label=1,
    mse=0.1,
    psnr=10.0,
    ssim=0.2,
    mse_to_perturbed=0.05,
    trained_mse=0.02,
    baseline_mse=0.04,
    attacker_label=0,
    identified=False,
    label_recovered=False,
)
FIT = JudgeQuality(0.9, low=0.8, chance=1 / 3)
UNFIT = JudgeQuality(0.39, low=0.34, chance=1 / 3)


def test_worst_round_of_the_mean_over_victims_then_worst_attack() -> None:
    records = [
        # round 0: mean mse .2, round 1: mean mse .15 although it holds the single best .0 only with a bad .3
        replace(BASE, victim=0, mse=0.2, psnr=7.0, ssim=0.5, identified=True),
        replace(BASE, victim=1, mse=0.2, psnr=7.0, ssim=0.3),
        replace(BASE, round=1, victim=0, mse=0.0, psnr=100.0, ssim=0.1, label_recovered=True),
        replace(BASE, round=1, victim=1, mse=0.3, psnr=5.0, ssim=0.1, label_recovered=True),
        replace(BASE, attack="adaptive", victim=0, mse=0.16, psnr=8.0, ssim=0.6, attacker_label=1),
        replace(BASE, attack="adaptive", victim=1, mse=0.18, psnr=7.5, ssim=0.6, mse_to_perturbed=0.01),
    ]
    scalars = summarise(records, adaptive=frozenset({"adaptive"}), judge=FIT)
    assert scalars["attack/inverting_gradients/mse"] == pytest.approx(0.15)
    assert scalars["attack/inverting_gradients/psnr"] == pytest.approx(52.5)  # mean of PSNR, not PSNR of .15
    assert scalars["attack/inverting_gradients/ssim"] == pytest.approx(0.4)
    assert scalars["attack/inverting_gradients/identification_rate"] == 0.5
    assert scalars["attack/inverting_gradients/label_recovery"] == 1.0
    assert scalars["attack/adaptive/mse_to_perturbed"] == pytest.approx(0.03)
    assert scalars["attack/adaptive/attacker_accuracy"] == 0.5
    assert scalars["privacy/mse"] == pytest.approx(0.15)
    assert scalars["privacy/psnr"] == pytest.approx(52.5)
    assert scalars["privacy/ssim"] == pytest.approx(0.6)
    assert scalars["privacy/attacker_accuracy"] == 0.5
    assert scalars["privacy/identification_rate"] == 0.5
    assert scalars["privacy/complete"] == 1.0


def test_the_names_are_those_that_the_tracker_knows() -> None:
    whole = replace(BASE, identified_forward=True, adaptive_label=1)
    scalars = summarise([whole, replace(whole, victim=1)], adaptive=frozenset(), judge=FIT)
    kinds = "mse psnr ssim attacker_accuracy adaptive_attacker_accuracy identification_rate"
    per_attack = "identification_nearest identification_forward mse_to_perturbed label_recovery"
    assert set(scalars) == {
        *(f"attack/inverting_gradients/{kind}" for kind in [*kinds.split(), *per_attack.split()]),
        *(f"privacy/{kind}" for kind in kinds.split()),
        *(f"privacy/{kind}_{end}" for kind in (kinds.split()[0], *kinds.split()[3:]) for end in ("low", "high")),
        "privacy/judge_accuracy",
        "privacy/chance_accuracy",
        "privacy/trained_mse",
        "privacy/baseline_mse",
        "privacy/complete",
    }


def test_what_was_not_measured_has_no_name() -> None:
    bare = replace(
        BASE, mse_to_perturbed=None, trained_mse=None, baseline_mse=None, attacker_label=None, identified=None
    )
    assert set(summarise([bare], adaptive=frozenset(), judge=None)) == {
        *(f"attack/inverting_gradients/{name}" for name in ("mse", "psnr", "ssim", "label_recovery")),
        *(f"privacy/{name}" for name in ("mse", "psnr", "ssim", "complete")),
    }


@pytest.mark.parametrize("judge", [None, UNFIT])
def test_no_attacker_accuracy_without_a_judge_that_reads_untouched_images(judge: JudgeQuality | None) -> None:
    scalars = summarise([BASE], adaptive=frozenset(), judge=judge)
    assert not [name for name in scalars if "attacker_accuracy" in name]
    assert scalars.get("privacy/judge_accuracy") == (None if judge is None else 0.39)


def test_an_attack_that_shows_no_class_takes_no_part_in_attacker_accuracy() -> None:
    records = [BASE, replace(BASE, attack="baseline", attacker_label=None)]
    scalars = summarise(records, adaptive=frozenset(), judge=FIT)
    assert "attack/baseline/attacker_accuracy" not in scalars
    assert scalars["attack/inverting_gradients/attacker_accuracy"] == 0.0


def test_the_headline_names_its_attack() -> None:
    records = [
        replace(BASE, mse=0.2, ssim=0.9),
        replace(BASE, attack="adaptive", mse=0.1, ssim=0.3),
        replace(BASE, attack="adaptive", mse=0.4, ssim=0.3, round=1),
        replace(BASE, attack="baseline", mse=0.01, ssim=0.99),
    ]
    assert headline_attack(records, "mse") == "adaptive"
    assert headline_attack(records, "ssim") == "inverting_gradients"
    with pytest.raises(FedveilError, match="no attack on an update left a score of mse"):
        headline_attack(records[-1:], "mse")
    with pytest.raises(FedveilError, match="unknown privacy metric 'lpips'"):
        headline_attack(records, "lpips")


def test_the_interval_is_over_the_victims_of_the_headline_s_audit() -> None:
    scores = [0.1, 0.2, 0.4, 0.1, 0.3]
    worst = [replace(BASE, attack="adaptive", round=1, victim=i, mse=m) for i, m in enumerate(scores)]
    others = [replace(r, round=0, mse=r.mse + 0.5) for r in worst] + [replace(r, attack="weak", mse=0.9) for r in worst]
    scalars = summarise([*others, *worst], adaptive=frozenset(), judge=None)
    expected = mean_ci(scores)
    assert headline_records([*others, *worst], "mse") == worst
    assert headline_interval([*others, *worst], "mse") == expected
    assert (scalars["privacy/mse_low"], scalars["privacy/mse_high"]) == (expected.low, expected.high)
    one = summarise(worst[:1], adaptive=frozenset(), judge=None)
    assert "privacy/mse_low" not in one
    assert "privacy/mse_high" not in one


def test_identification_is_the_better_of_both_ways_over_all_victims_of_an_attack() -> None:
    nearest, forward = [True, False, False, False], [False, True, True, None]
    records = [
        replace(BASE, attack="adaptive", victim=v, identified=a, identified_forward=b)
        for v, (a, b) in enumerate(zip(nearest, forward, strict=True))
    ]
    plain = [replace(BASE, victim=v, identified=found) for v, found in enumerate([True, True, False, False])]
    scalars = summarise([*records, *plain], adaptive=frozenset({"adaptive"}), judge=None)
    assert scalars["attack/adaptive/identification_nearest"] == 0.25
    assert scalars["attack/adaptive/identification_forward"] == pytest.approx(2 / 3)
    assert scalars["attack/adaptive/identification_rate"] == pytest.approx(2 / 3)
    assert scalars["attack/inverting_gradients/identification_rate"] == 0.5
    assert "attack/inverting_gradients/identification_forward" not in scalars
    assert scalars["privacy/identification_rate"] == pytest.approx(2 / 3)
    assert headline_interval([*records, *plain], "identification_rate") == mean_ci([0.0, 1.0, 1.0])
    # Per victim the way that finds more counts, whichever it is for that one.
    assert per_victim(records, "identification_rate") == {(0, 0): 0.0, (0, 1): 1.0, (0, 2): 1.0}


def test_the_attacker_s_own_classifier_is_read_without_a_judge_and_has_its_interval() -> None:
    records = [replace(BASE, attack="adaptive", victim=v, label=1, adaptive_label=v % 2) for v in range(20)]
    scalars = summarise(records, adaptive=frozenset({"adaptive"}), judge=None)
    ends = mean_ci([0.0, 1.0] * 10)
    assert scalars["privacy/adaptive_attacker_accuracy"] == scalars["attack/adaptive/adaptive_attacker_accuracy"] == 0.5
    assert scalars["privacy/adaptive_attacker_accuracy_low"] == ends.low
    assert scalars["privacy/adaptive_attacker_accuracy_high"] == ends.high
    assert "privacy/attacker_accuracy_low" not in scalars
    judged = summarise([replace(r, attacker_label=r.victim % 2) for r in records], adaptive=frozenset(), judge=FIT)
    assert (judged["privacy/attacker_accuracy_low"], judged["privacy/attacker_accuracy_high"]) == (ends.low, ends.high)


def test_the_baseline_attack_is_logged_but_is_not_a_leak() -> None:
    records = [BASE, replace(BASE, attack="baseline", mse=0.01, ssim=0.9)]
    scalars = summarise(records, adaptive=frozenset({"adaptive"}), judge=FIT)
    assert scalars["attack/baseline/mse"] == 0.01
    assert scalars["privacy/mse"] == 0.1
    assert scalars["privacy/ssim"] == 0.2


def test_without_an_adaptive_attack_a_trial_is_incomplete() -> None:
    assert summarise([BASE], adaptive=frozenset({"adaptive"}), judge=FIT)["privacy/complete"] == 0.0
    only_floor = summarise([replace(BASE, attack="baseline")], adaptive=frozenset({"adaptive"}), judge=FIT)
    assert only_floor["privacy/complete"] == 0.0
    assert "privacy/mse" not in only_floor


def test_one_attack_under_two_threat_models_is_not_averaged_over_them() -> None:
    records = [
        replace(BASE, attack="adaptive", mse=0.09),
        replace(BASE, attack="adaptive", mse=0.03, threat_model=ThreatModel(defense_modules=True)),
    ]
    assert summarise(records, adaptive=frozenset({"adaptive"}), judge=FIT)["attack/adaptive/mse"] == 0.03


def test_means_count_each_audited_victim_once() -> None:
    records = [
        replace(BASE, victim=0, trained_mse=0.1, baseline_mse=0.3),
        replace(BASE, victim=0, trained_mse=0.1, baseline_mse=0.3, attack="adaptive"),
        replace(BASE, victim=1, trained_mse=0.2, baseline_mse=0.5),
        replace(BASE, victim=2, trained_mse=0.3, baseline_mse=0.7),
        replace(BASE, victim=2, trained_mse=0.4, baseline_mse=0.7, round=1),
    ]
    scalars = summarise(records, adaptive=frozenset({"adaptive"}), judge=FIT)
    assert scalars["privacy/trained_mse"] == pytest.approx((0.1 + 0.2 + 0.3 + 0.4) / 4)
    assert scalars["privacy/baseline_mse"] == pytest.approx((0.3 + 0.5 + 0.7 + 0.7) / 4)


@pytest.mark.parametrize(
    ("labels", "chance"),
    [
        ([0, 1, 2], 1 / 3),
        ([0, 1, 2, 2, 0, 1, 1, 2], 1 / 3),  # 8 victims cannot be more even
        ([1], 1 / 3),  # one victim of any class
        ([0, 0, 1, 1], 1 / 2),  # a class that no victim has: a guess at the others is right every second time
        ([0, 0, 0, 1, 2, 0], 4 / 6),
    ],
)
def test_chance_is_that_of_the_best_guess(labels: list[int], chance: float) -> None:
    records = [replace(BASE, victim=v, label=y, attack=a) for v, y in enumerate(labels) for a in ("a", "b")]
    scalars = summarise(records, adaptive=frozenset(), judge=FIT)
    assert scalars["privacy/chance_accuracy"] == pytest.approx(chance)


def test_no_records_are_an_error() -> None:
    with pytest.raises(FedveilError, match="no attack left a record"):
        summarise([], adaptive=frozenset(), judge=None)


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12))
@settings(max_examples=40)
def test_one_more_attack_never_makes_the_headline_more_private(
    scores: list[tuple[int, float, float]],
) -> None:
    first = [replace(BASE, victim=i, round=r, mse=m, ssim=s) for i, (r, m, s) in enumerate(scores)]
    second = [replace(record, attack="adaptive", mse=record.ssim, ssim=record.mse) for record in first]
    before = summarise(first, adaptive=frozenset(), judge=FIT)
    after = summarise([*first, *second], adaptive=frozenset(), judge=FIT)
    for metric in METRICS:
        name = f"privacy/{metric.name}"
        if metric.headline and name in before:
            assert after[name] == metric.leakiest([before[name], after[name]])


def test_mean_ci_of_known_cases() -> None:
    mean, low, high = mean_ci([0.0, 1.0] * 50, seed=0)
    # standard error sqrt(.25 / 100) = .05, so the interval is about .5 -+ 1.96 * .05
    assert mean == 0.5
    assert low == pytest.approx(0.402, abs=0.02)
    assert high == pytest.approx(0.598, abs=0.02)
    assert mean_ci([0.0, 1.0] * 50, seed=0) == (mean, low, high)
    with pytest.raises(FedveilError, match="at least one value"):
        mean_ci([], seed=0)


def test_one_value_tells_nothing_of_the_spread_and_equal_ones_have_none() -> None:
    assert mean_ci([0.25]) == (0.25, None, None)
    assert mean_ci([0.25] * 4) == (0.25, 0.25, 0.25)
    assert mean_ci([0.1 + 0.2, 0.3, 0.3]) == pytest.approx((0.3, 0.3, 0.3))  # alike but for rounding
    assert mean_ci([0.0, 0.0]) == (0.0, 0.0, 0.0)


def test_the_interval_leans_to_the_side_of_the_rare_large_values() -> None:
    # what the percentile bootstrap misses: the mean of a skewed sample is more likely too low than too high
    values = [0.01] * 30 + [0.5, 1.0]
    mean, low, high = mean_ci(values)
    assert low is not None
    assert high is not None
    assert high - mean > 1.5 * (mean - low)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30))
@settings(max_examples=40)
def test_an_interval_is_never_nan_and_lies_within_the_values(values: list[float]) -> None:
    mean, low, high = mean_ci(values, resamples=200)
    assert math.isfinite(mean)
    assert (low is None) == (high is None) == (len(values) == 1)
    if low is not None and high is not None:
        if len(values) < FEW:
            assert low - 1e-9 <= mean <= high + 1e-9
        else:
            assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


def test_paired_difference_cancels_what_victims_share() -> None:
    easy_and_hard = [0.01, 0.2, 0.5, 0.05]
    a = [replace(BASE, victim=i, mse=m + 0.01) for i, m in enumerate(easy_and_hard)]
    b = [replace(BASE, victim=i, mse=m) for i, m in enumerate(easy_and_hard)]
    # unpaired, the spread of .01 to .5 would drown the difference of .01
    assert paired_difference(a, b[::-1], "mse") == pytest.approx((0.01, 0.01, 0.01))
    assert paired_difference(b, a, "mse").mean == pytest.approx(-0.01)


def test_paired_difference_resamples_victims_not_rounds() -> None:
    rounds = range(25)
    a = [replace(BASE, victim=v, round=r, mse=float(v)) for v in (0, 1) for r in rounds]
    b = [replace(record, mse=0.0) for record in a]
    # two victims with differences 0 and 1, t = 12.706 for one degree of freedom; fifty rows would stay near .5
    assert paired_difference(a, b, "mse") == pytest.approx((0.5, 0.0, 0.5 + 12.7062 * 0.5), rel=1e-4)


def test_differences_of_values_per_victim_are_those_of_the_records() -> None:
    a = [
        replace(BASE, seed=s, victim=v, round=r, mse=0.1 * v + 0.01 * r)
        for s in (0, 1)
        for v in range(4)
        for r in (0, 1)
    ]
    b = [replace(record, mse=record.mse**2) for record in a]
    values = per_victim(a, "mse")
    assert values.keys() == {(s, v) for s in (0, 1) for v in range(4)}
    assert values[1, 2] == pytest.approx(0.205)  # the mean of .20 and .21
    assert paired_difference_of(values, per_victim(b, "mse")) == pytest.approx(paired_difference(a, b, "mse"))
    with pytest.raises(FedveilError, match="same units; 1 only in the first, 0 only in the second"):
        paired_difference_of({0: 1.0, 1: 2.0}, {1: 1.0})
    assert per_victim([replace(BASE, baseline_mse=None, attacker_label=None)], "attacker_accuracy") == {}


def test_paired_difference_needs_the_same_audits() -> None:
    a = [replace(BASE, victim=i) for i in range(3)]
    with pytest.raises(FedveilError, match="1 only in the first, 0 only in the second"):
        paired_difference(a, a[:2], "mse")
    with pytest.raises(FedveilError, match="3 only in the first, 3 only in the second"):
        paired_difference(a, [replace(r, round=1) for r in a], "mse")
    with pytest.raises(FedveilError, match="occurs twice"):
        paired_difference([*a, replace(a[0], attack="adaptive")], a, "mse")
    with pytest.raises(FedveilError, match="unknown privacy metric 'lpips'"):
        paired_difference(a, a, "lpips")
