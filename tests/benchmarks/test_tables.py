"""The page of benchmarks says what the records say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.markdown import MISSING
from benchmarks.strength import ATTACKS, BASE, DEFENSES
from benchmarks.tables import PAGE, RESULTS, page, quality
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
    assert page(tmp_path).count(MISSING) == 8


@pytest.mark.parametrize("defense", DEFENSES, ids=lambda one: one["name"])
def test_the_federations_of_the_strength_benchmark_are_valid(defense):
    raw = {**BASE, "experiment": "strength", "defense": defense, "audit": {**BASE["audit"], "attacks": list(ATTACKS)}}
    checked, _ = load_experiment(raw, (), ())
    assert checked.build_defense().name == defense["name"]
    assert len(checked.audit.build_attacks()) == len(ATTACKS) + 1
