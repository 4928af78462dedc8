from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.study.cell import as_row, experiment, silent_rows
from benchmarks.study.protocols import FAMILIES, PROTOCOLS
from benchmarks.study.render import PAGE, interval, page, section
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
    text = section({"machine": about, "rows": rows})
    (latent,) = [line for line in text.splitlines() if line.startswith("| `latent` k 10")]
    assert "| 2 | 0.920 ± 0.000 | +0.020 ± 0.127 | +0.120 ± 0.000 |" in latent
    assert "0.0123" in latent
    assert "Not yet with all 3 seeds" in text


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
