"""Faults are caused, their costs are counted, and the page says what the record says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tiny import share_cache

from benchmarks.faults import __main__ as faults
from benchmarks.faults.outcome import cost
from benchmarks.faults.render import PAGE, page
from benchmarks.faults.stage import FAULTS
from benchmarks.tables import MISSING

ROOT = Path(__file__).parents[2]
MACHINE = {"cpu": "a core", "threads": 1, "torch": "2", "python": "3"}


def row(**fields):
    usual = {"moment": "a round", "time": 0, "lost": 0, "doubled": 0, "bit_equal": True, "seconds": 4.0, "troubles": []}
    return {"kind": "worker-round", **usual, **fields}


def write(path, *rows):
    path.write_text(json.dumps({"machine": MACHINE, "rows": rows}))
    return path


def test_the_page_matches_the_record():
    assert (ROOT / PAGE).read_text() == page(ROOT / faults.OUT)


def test_what_is_missing_doubled_or_other_is_counted():
    undisturbed = {"a": ["1"], "b": ["2"], "c": ["3"], "d": ["4", "5"]}
    same = cost(undisturbed, undisturbed)
    assert (same.lost, same.doubled, same.bit_equal, same.differences) == (0, 0, True, ())
    found = cost({"a": ["1", "1"], "c": ["3.1"], "d": ["4"], "e": ["6"]}, undisturbed)
    assert (found.lost, found.doubled, found.bit_equal) == (2, 2, False)
    assert found.differences == ("lost: b", "lost: d", "doubled: a", "doubled: e", "other: c", "other: d")


def test_the_page_sums_up_what_each_kind_cost(tmp_path):
    rows = [
        row(),
        row(time=1, moment="an audit", lost=2, bit_equal=False, seconds=9.0, troubles=["exit code 1: gone"]),
        row(time=2, seconds=5.0, doubled=1),
    ]
    text = page(write(tmp_path / "faults.json", *rows))
    assert "| a worker killed in a round | a round (2), an audit | 3 | 2 | 1 | 2 of 3 | 5, 9 |" in text
    assert "- a worker killed in a round, an audit: exit code 1: gone" in text
    assert FAULTS["worker-audit"].title in text.rpartition("Not measured yet: ")[2]
    assert page(tmp_path / "none.json").endswith(f"{MISSING}\n")


def test_there_are_at_least_sixteen_kinds():
    assert len(FAULTS) >= 16


def test_what_the_record_has_is_not_repeated(tmp_path, monkeypatch):
    out = write(tmp_path / "faults.json", row())
    tried = []
    monkeypatch.setattr(faults, "attempt", lambda fault, time, *_: tried.append((fault.name, time)) or row(time=time))
    words = ["--kinds", "worker-round", "--times", "3", "--out", str(out), "--page", str(tmp_path / "page.md")]
    monkeypatch.setattr(sys, "argv", ["faults", *words])
    faults.main()
    assert tried == [("worker-round", 1), ("worker-round", 2)]
    assert [one["time"] for one in json.loads(out.read_text())["rows"]] == [0, 1, 2]


SAMPLE = "worker-round"


@pytest.fixture(scope="module")
def undisturbed(modules, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    for command in ("run", "sweep"):
        share_cache(folder / command, modules)
    return faults.Undisturbed(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [SAMPLE, *(pytest.param(kind, marks=pytest.mark.long) for kind in FAULTS if kind != SAMPLE)]
)
def test_a_fault_costs_nothing(kind, undisturbed, modules, tmp_path):
    found = faults.attempt(FAULTS[kind], 3, undisturbed, share_cache(tmp_path / "try", modules))
    assert found["troubles"] == []
    assert (found["lost"], found["doubled"], found["bit_equal"]) == (0, 0, True)
