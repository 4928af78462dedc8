from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.single_defence import PROTOCOL, RESULTS, measured
from fedveil.defense import DEFENSES
from fedveil.orchestrator.config.options import build_named

TINY = {
    **PROTOCOL,
    "data": "mni152",
    "clients": 2,
    "images": 20,
    "public": 20,
    "auxiliary": 40,
    "test": 20,
    "rounds": 1,
    "victims": 2,
    "steps": 4,
    "inverse_steps": 2,
}


@pytest.mark.parametrize(
    "setting", [{"name": "bido"}, {"name": "instahide"}, {"name": "sign"}], ids=lambda one: one["name"]
)
def test_a_row_says_what_a_defence_costs_and_leaves(setting: dict[str, Any]) -> None:
    row = measured(setting, [(1, 2), (2, 1)], TINY)
    assert row["defense"] == setting
    assert 0 <= row["accuracy"] <= 1
    assert row["update_bytes"] > 0
    for audit in (row["batch 1, seen 2"], row["batch 2, seen 1"]):
        assert audit["privacy/complete"] == 1
        assert audit["adaptive/mse_low"] <= audit["adaptive/mse"] <= audit["adaptive/mse_high"]
        assert ("trained_images/mse" in audit) is (setting["name"] != "sign")
    assert bool(row["diagnostics"]) is (setting["name"] == "bido")


def test_the_record_that_is_kept_is_of_defences_that_there_are() -> None:
    record = json.loads(RESULTS.read_text())
    assert record["protocol"] == PROTOCOL
    for row in record["rows"]:
        assert build_named(DEFENSES, row["defense"]).name == row["defense"]["name"]
