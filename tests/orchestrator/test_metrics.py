from __future__ import annotations

import pytest

from fedveil.orchestrator.metrics import CURVES, FINAL, SUMMARY, fits, metric, objectives


def test_no_name_stands_twice_and_each_has_a_meaning() -> None:
    names = [known.name for known in (*FINAL, *CURVES, *SUMMARY)]
    assert len(names) == len(set(names))
    assert all(known.meaning for known in (*FINAL, *CURVES, *SUMMARY))
    assert all(known.better for known in FINAL if known.objective)


@pytest.mark.parametrize(
    ("name", "better", "text"),
    [
        ("privacy/mse", "max", "0.0123"),
        ("privacy/ssim", "min", "0.01"),
        ("attack/adaptive_2/psnr", "min", "0.0"),
        ("attack/trained_images/mse", "max", "0.0123"),
        ("privacy/membership_auc", "min", "0.012"),
        ("cost/train_seconds", "min", "0"),
        ("fl/loss", "min", "0.012"),
        ("defense/collapsed", None, "0.012"),
    ],
)
def test_a_name_tells_which_direction_is_better_and_how_it_is_written(name: str, better: str, text: str) -> None:
    assert metric(name).better == better
    assert metric(name).write(0.0123) == text


def test_placeholders_hold_one_part_of_a_name() -> None:
    assert fits("swept/defense.strength", "swept/<key>")
    assert not fits("attack/a/b/mse", "attack/<attack>/mse")
    assert not fits("utility/accuracy2", "utility/accuracy")
    for name in ("privacy/lpips", "attack/x/none", "attack/x/mse/"):
        with pytest.raises(KeyError, match=name):
            metric(name)


def test_a_search_may_aim_at_what_the_attacks_of_its_trials_report() -> None:
    names = objectives(["adaptive", "adaptive_2"])
    assert {"privacy/mse", "privacy/mse_low", "attack/adaptive_2/mse", "attack/baseline/mse", "fl/loss"} <= set(names)
    assert not {"privacy/chance_accuracy", "privacy/complete", "attack/other/mse", "sweep/trials"} & set(names)
    alone = objectives([])
    assert "attack/baseline/mse" in alone
    assert not {"privacy/mse", "privacy/mse_low", "privacy/ssim"} & set(alone)
