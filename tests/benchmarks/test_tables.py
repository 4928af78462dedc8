"""The page of benchmarks says what the records say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import update_defenses as update_defenses_benchmark
from benchmarks.markdown import MISSING
from benchmarks.strength import ATTACKS, BASE, DEFENSES
from benchmarks.tables import PAGE, RESULTS, page, quality, update_defenses
from fedveil.orchestrator.config import load_experiment

ROOT = Path(__file__).parents[2]
SETTING = {"network": "lenet", "data": "mni152", "weights": "initial", "batch": 1, "local_steps": 1, "evaluations": 200}
MACHINE = {"cpu": "a core", "threads": 1, "torch": "2", "python": "3"}


def test_the_page_matches_the_records():
    assert (ROOT / PAGE).read_text() == page(ROOT / RESULTS)


def _write(folder, side, *rows):
    rows = [{**SETTING, "victims": 32, **row} for row in rows]
    (folder / "quality").mkdir(exist_ok=True)
    (folder / "quality" / f"{side}.json").write_text(
        json.dumps({"machine": MACHINE, "rows": rows, "guess": {"mni152": 12.9}})
    )


def test_the_peers_best_full_configuration_stands_beside_ours(tmp_path):
    configurations = [("deepleakage", 41.0, 32), ("modern", 30.0, 32), ("invertinggradients", 50.0, 4)]
    _write(
        tmp_path,
        "breaching",
        *({"attack": name, "psnr_mean": mean, "victims": victims} for name, mean, victims in configurations),
    )
    _write(tmp_path, "fedveil", {"attack": "Strongest()", "psnr_mean": 41.0})
    text = quality(tmp_path)
    assert "| lenet | 1 | 1 | 41.0 d / **41.0** | - / - | - / - | - / - |" in text
    assert "attacked 1 settings in full; in 1 of them" in text
    assert "is at 12.9 dB on mni152: in 0 of the other 0," in text
    _write(tmp_path, "fedveil", {"attack": "Strongest()", "psnr_mean": 40.9})
    assert "41.0 d / 40.9 |" in quality(tmp_path)


def test_what_was_not_measured_is_said(tmp_path):
    assert page(tmp_path).count(MISSING) == 9


def test_defences_of_the_update_stand_beside_none_of_the_same_seed(tmp_path):
    of = {"data": "blood", "auc": 1.0, "train_seconds": 1.0, "test_images": 10}
    rows = [
        {**of, "seed": 0, "defense": {"name": "none"}, "accuracy": 0.9, "update_bytes": 400.0},
        {**of, "seed": 1, "defense": {"name": "none"}, "accuracy": 0.8, "update_bytes": 400.0},
        {**of, "seed": 0, "defense": {"name": "dgp", "feedback": 0.0}, "accuracy": 0.88, "update_bytes": 100.0},
        {**of, "seed": 1, "defense": {"name": "dgp", "feedback": 0.0}, "accuracy": 0.81, "update_bytes": 100.0},
    ]
    (tmp_path / "update_defenses.json").write_text(json.dumps({"machine": MACHINE, "rows": rows}))
    text = update_defenses(tmp_path)
    assert "| `none` | 2 | 0.850 | +0.0 (+0.0 to +0.0) | 400 | 1.00 |" in text
    assert "| `dgp` feedback 0.0 | 2 | 0.845 | -0.5 (-2.0 to +1.0) | 100 | 0.25 |" in text


@pytest.mark.parametrize("defense", update_defenses_benchmark.DEFENSES, ids=str)
def test_the_federations_of_the_benchmark_of_updates_are_valid(defense):
    checked, _ = load_experiment(update_defenses_benchmark.raw(0, defense), (), ())
    assert checked.build_defense().name == defense["name"]


@pytest.mark.parametrize("defense", DEFENSES, ids=lambda one: one["name"])
def test_the_federations_of_the_strength_benchmark_are_valid(defense):
    raw = {**BASE, "experiment": "strength", "defense": defense, "audit": {**BASE["audit"], "attacks": list(ATTACKS)}}
    checked, _ = load_experiment(raw, (), ())
    assert checked.build_defense().name == defense["name"]
    assert len(checked.audit.build_attacks()) == len(ATTACKS) + 1
