"""What is said of a setting, worked out by hand from its numbers."""

from __future__ import annotations

import pytest

from fedveil.orchestrator.report import TrialGroup, TrialRow, group_seeds
from fedveil.orchestrator.report.html.findings import (
    Level,
    finding,
    recovered,
    settings_to_answer_for,
)


def setting(defense: str = "latent", **metrics: float) -> TrialGroup:
    whole = {"privacy/complete": 1.0, "privacy/baseline_mse": 0.04}
    whole |= {name.replace("__", "/"): value for name, value in metrics.items()}
    (group,) = group_seeds([TrialRow(defense, "FINISHED", {"defense.name": defense}, whole)])
    return group


@pytest.mark.parametrize(
    ("error", "share", "level", "words"),
    [
        (0.0, 1.0, Level.LEAKS, "nearly whole"),
        (0.004, 0.9, Level.LEAKS, "nearly whole"),
        (0.02, 0.5, Level.LEAKS, "most of it"),
        (0.03, 0.25, Level.PARTLY, "part of it"),
        (0.038, 0.05, Level.NOTHING, "hardly more came back"),
        (0.04, 0.0, Level.NOTHING, "no attack came clearly nearer than a guess"),
        (0.05, 0.0, Level.NOTHING, "no attack came clearly nearer than a guess"),
    ],
)
def test_how_much_came_back(error: float, share: float, level: Level, words: str) -> None:
    row = setting(privacy__mse=error)
    assert recovered(row) == pytest.approx(share)
    found = finding(row, None, None)
    assert found.level is level
    assert words in found.lines[0]


def test_an_interval_that_reaches_the_guess_is_no_leak() -> None:
    near = {"privacy__mse": 0.03, "privacy__mse_low": 0.02}
    assert finding(setting(**near, privacy__mse_high=0.039), None, None).level is Level.PARTLY
    found = finding(setting(**near, privacy__mse_high=0.041), None, None)
    assert found.level is Level.NOTHING
    assert "off by 0.0300 (95 % interval 0.0200 to 0.0410)" in found.lines[0]


@pytest.mark.parametrize(
    ("rate", "low", "guess", "level"),
    [
        (0.8, 0.6, 0.0, Level.LEAKS),
        (0.2, 0.1, 0.0, Level.PARTLY),
        (0.2, 0.01, 0.0, Level.NOTHING),  # chance is 1 / 60
        (0.2, 0.1, 0.125, Level.NOTHING),  # an attacker without the update does as well
    ],
)
def test_who_is_recognised_leaks_however_far_off_the_image_is(
    rate: float, low: float, guess: float, level: Level
) -> None:
    metrics = {
        "privacy__mse": 0.05,
        "privacy__identification_rate": rate,
        "privacy__identification_rate_low": low,
        "privacy__identification_rate_high": 1.2,  # Student's t of a few victims knows no bounds
        "attack__baseline__identification_rate": guess,
    }
    found = finding(setting(**metrics), None, 60)
    assert found.level is level
    (person,) = [line for line in found.lines if line.startswith("Person")]
    assert f"95 % interval {100 * low:.0f} %".replace("1 %", "1.0 %" if low == 0.01 else "1 %") in person
    assert "to 100 %" in person
    assert "a line-up of 60 images" in person
    assert f"a guess without the update finds {'12 %' if guess else '1.7 %'}" in person


def test_membership_above_chance_is_something() -> None:
    metrics = {"privacy__mse": 0.05, "privacy__membership_auc": 0.6, "privacy__membership_auc_high": 0.7}
    assert finding(setting(**metrics, privacy__membership_auc_low=0.55), None, None).level is Level.PARTLY
    assert finding(setting(**metrics, privacy__membership_auc_low=0.45), None, None).level is Level.NOTHING


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({}, "No attack on an update was scored"),
        ({"privacy__mse": 0.05, "privacy__complete": 0.0}, "No attack that knows the protection was tried"),
        ({"privacy__mse": 0.05, "defense__collapsed": 1.0}, "own training failed"),
        ({"privacy__mse": 0.05, "attack__strongest__misfit": 0.5}, "No attack worked"),
    ],
)
def test_what_supports_no_statement_is_not_known(metrics: dict[str, float], words: str) -> None:
    found = finding(setting(**metrics), None, None)
    assert found.level is Level.UNKNOWN
    assert words in found.lines[0]


@pytest.mark.parametrize(
    ("metrics", "level", "words"),
    [
        (
            {"privacy__mse": 0.001, "privacy__complete": 0.0},
            Level.LEAKS,
            "No attack that knows the protection was tried",
        ),
        (
            {"privacy__mse": 0.05, "attack__strongest__misfit": 0.5, "privacy__identification_rate": 1.0},
            Level.LEAKS,
            "No attack worked",
        ),
        ({"privacy__mse": 0.03, "attack__strongest__misfit": 0.5}, Level.PARTLY, "No attack worked"),
    ],
)
def test_what_weak_attacks_found_is_the_least_that_can_be(metrics: dict[str, float], level: Level, words: str) -> None:
    found = finding(setting(**metrics), None, 60)
    assert found.level is level
    assert words in found.lines[0]
    assert found.lines[0].endswith("What follows was found all the same, and is the least that can be.")
    assert found.lines[1].startswith("Image: ")


def test_without_a_guess_to_compare_with_nothing_is_said_of_the_image() -> None:
    found = finding(setting(privacy__mse=0.01, privacy__baseline_mse=0.0), None, None)
    assert found.level is Level.UNKNOWN
    assert "no guess to compare" in found.lines[0]


def test_the_diagnosis_is_read_by_the_better_of_two_and_use_is_compared_with_no_protection() -> None:
    plain = setting("none", utility__accuracy=0.9, privacy__mse=0.001)
    row = setting(
        utility__accuracy=0.875,
        privacy__mse=0.03,
        privacy__attacker_accuracy=0.5,
        privacy__adaptive_attacker_accuracy=0.75,
        privacy__chance_accuracy=0.25,
    )
    lines = finding(row, plain, None).lines
    assert "Diagnosis (the class): read off right for 75 %, where chance is 25 %." in lines
    assert "Use: the model is right on 88 % of the test images, 2.5 points below that without protection." in lines
    assert finding(plain, plain, None).lines[-1] == "Use: the model is right on 90 % of the test images."


def test_each_protection_is_answered_for_once_even_where_no_setting_may_compete() -> None:
    def row(name: str, defense: str, accuracy: float, error: float, complete: float = 1.0) -> TrialRow:
        metrics = {"utility/accuracy": accuracy, "privacy/mse": error, "privacy/complete": complete}
        return TrialRow(name, "FINISHED", {"defense.name": defense, "k": name}, metrics)

    rows = [
        row("a", "top_k", 0.9, 0.01, complete=0.0),
        row("b", "latent", 0.9, 0.01),
        row("c", "latent", 0.89, 0.02),
        row("d", "top_k", 0.9, 0.02, complete=0.0),
    ]
    assert [one.name for one in settings_to_answer_for(rows)] == ["c", "a"]


def test_what_is_proved_is_said_even_where_no_attack_ran() -> None:
    proof = "Differential privacy: epsilon is 7.49, by proof"
    attacked = finding(setting(privacy__mse=0.03, privacy__epsilon=7.4905), None, None)
    unknown = finding(setting(privacy__epsilon=7.4905), None, None)
    assert unknown.level is Level.UNKNOWN
    assert all(any(line.startswith(proof) for line in found.lines) for found in (attacked, unknown))
    params = {"defense.name": "dp_sgd", "defense.accountant": "gdp"}
    (row,) = group_seeds([TrialRow("dp_sgd", "FINISHED", params, {"privacy/epsilon": 2.0, "privacy/delta": 1e-05})])
    assert any("epsilon is 2 at delta 1e-05, by an approximation" in line for line in finding(row, None, None).lines)
    assert not any("epsilon" in line for line in finding(setting(privacy__mse=0.03), None, None).lines)
