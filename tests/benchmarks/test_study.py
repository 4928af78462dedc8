from __future__ import annotations

import doctest
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks.study.cell import as_row, experiment, silent_rows, untouched
from benchmarks.study.figure import draw_trade_off
from benchmarks.study.matched import matched
from benchmarks.study.protocols import FAMILIES, PROTOCOLS
from benchmarks.study.render import PAGE, figure_of, interval, page, section
from benchmarks.tables import RESULTS
from fedveil.orchestrator.config import check


@pytest.mark.parametrize("data", PROTOCOLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_cell_is_an_experiment(data: str, family: str) -> None:
    for settings in FAMILIES[family]:
        built = check(experiment(data, 1, family, settings, {}))
        assert built.seed == 1
        assert built.build_defense().name == family


def test_families_have_as_many_settings() -> None:
    assert {len(options) for family, options in FAMILIES.items() if family != "none"} == {3}


METRICS = {
    "utility/accuracy": 0.9,
    "utility/auc": 0.99,
    "utility/public_accuracy": 0.7,
    "utility/local_accuracy": 0.8,
    "attack/trained_images/mse": 0.0123456789,
    "attack/adaptive/mse": 0.02,
    "privacy/mse": 0.0123456789,
    "privacy/baseline_mse": 0.015,
    "privacy/left_out_victims": 6.0,
    "cost/train_seconds": 12.345,
}


def test_a_row_tells_utility_privacy_by_tier_and_cost() -> None:
    row = as_row("blood", 0, "latent", {"k": 10}, METRICS)
    assert row["victims"] == 250
    assert row["utility"]["accuracy"] == 0.9
    assert row["privacy"]["trained_images"] == {"mse": 0.012346}
    assert row["privacy"]["algorithm"] == {"mse": 0.02}
    assert "modules" not in row["privacy"]
    assert row["privacy"]["worst"]["baseline_mse"] == 0.015
    assert row["cost"] == {"train_seconds": 12.35}
    public, local = silent_rows(row)
    assert (public["defense"], public["utility"], public["privacy"]) == ("public_only", {"accuracy": 0.7}, {})
    assert (local["defense"], local["utility"]) == ("local_only", {"accuracy": 0.8})


def test_the_table_has_a_line_per_setting_with_the_distance_to_no_defence() -> None:
    def row(defense: str, seed: int, accuracy: float, **settings: Any) -> dict[str, Any]:
        return as_row("blood", seed, defense, settings, {**METRICS, "utility/accuracy": accuracy})

    rows = [row("none", 0, 0.95), row("none", 1, 0.93), row("latent", 0, 0.92, k=10), row("latent", 1, 0.92, k=10)]
    rows += [one for undefended in rows[:2] for one in silent_rows(undefended)]
    about = {"cpu": "a processor", "threads": 1, "torch": "2", "python": "3"}
    text = section({"rows": [{**row, "machine": about} for row in rows]})
    (latent,) = [line for line in text.splitlines() if line.startswith("| `latent` k 10")]
    assert "| 2 | 0.920 ± 0.000 | 0.920 ± 0.000 | +0.020 ± 0.127 | +0.120 ± 0.000 |" in latent
    assert "0.0123" in latent
    assert "Not yet with all 3 seeds" in text


def test_accuracy_is_that_on_images_that_pass_no_defence() -> None:
    both = as_row("blood", 0, "pixel_noise", {"strength": 0.1}, {**METRICS, "utility/clean_accuracy": 0.92})
    assert untouched(both) == 0.92
    (line,) = [line for line in section({"rows": [both]}).splitlines() if line.startswith("| `pixel_noise`")]
    assert line.startswith("| `pixel_noise` strength 0.1 | 1 | 0.920 | 0.900 |")
    public, _ = silent_rows(both)
    assert untouched(public) == 0.7


def test_the_figure_has_a_line_per_family_and_the_error_in_units_of_a_guess() -> None:
    rows = [
        as_row("blood", seed, "latent", {"k": k}, {**METRICS, "utility/accuracy": 0.9 - 0.01 * seed - 0.002 * k})
        for seed in (0, 1)
        for k in (5, 10)
    ]
    rows += silent_rows(rows[0])
    (axes,) = draw_trade_off(rows, title="blood").axes
    (line,) = [line for line in axes.lines if line.get_label() == "latent"]
    # ascending accuracy: k 10 before k 5, each the mean of two seeds
    assert list(line.get_xdata()) == pytest.approx([0.875, 0.885])
    assert list(line.get_ydata()) == pytest.approx([0.012346 / 0.015] * 2)
    assert {text.get_text() for text in axes.texts} >= {"k 5", "k 10", "public only", "local only"}


def test_controls_are_compared_at_the_same_accuracy() -> None:
    def row(defense: str, accuracy: float, error: float, seed: int = 0, **settings: Any) -> dict[str, Any]:
        return as_row("blood", seed, defense, settings, {"utility/accuracy": accuracy, "privacy/mse": error})

    rows = [row("latent", 0.84, 0.012, k=10), row("latent", 0.86, 0.012, seed=1, k=10), row("latent", 0.95, 0.01, k=3)]
    rows += [row("pixel_noise", 0.9, 0.002, strength=0.1), row("pixel_noise", 0.8, 0.004, strength=0.2)]
    head, _, first, second = matched(rows, "at its accuracy").splitlines()
    assert head.startswith("| at its accuracy | accuracy | MSE | `pixel_noise` |")
    assert first.startswith("| `latent` k 3 | 0.950 | 0.0100 | - |")
    # halfway between .9 and .8: .003, a fourth of .012
    assert second.startswith("| `latent` k 10 | 0.850 | 0.0120 | 0.0030 (4.0x) |")
    assert matched(rows[2:], "at its accuracy") == ""
    assert doctest.testmod(import_module("benchmarks.study.matched")).failed == 0


def test_intervals_are_students() -> None:
    assert interval([], "{:.1f}") == "-"
    assert interval([1.0], "{:.1f}") == "1.0"
    # mean 2, deviation 1, t(2) = 4.303
    assert interval([1.0, 2.0, 3.0], "{:.2f}") == "2.00 ± 2.48"


def test_the_page_is_that_of_the_records() -> None:
    assert Path(PAGE).read_text() == page(RESULTS)
    for data in PROTOCOLS:
        path = RESULTS / f"study-{data}.json"
        if path.exists():
            assert json.loads(path.read_text())["rows"]
            assert (PAGE.parent / figure_of(data)).exists()
