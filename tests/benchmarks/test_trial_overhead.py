from __future__ import annotations

import json
import sys

import pytest

from benchmarks import trial_overhead
from benchmarks.trial_overhead import EXPERIMENT, main
from fedveil.orchestrator.config import load_experiment
from fedveil.orchestrator.run.tuning import settings_of


def test_a_sweep_has_as_many_trials_as_are_asked_for() -> None:
    checked, _ = load_experiment({**EXPERIMENT, "search": {**EXPERIMENT["search"], "samples": 7}}, (), ())
    assert checked.search is not None
    assert settings_of(checked.search) == 7


def test_what_all_sweeps_cost_cancels_out(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(trial_overhead, "sweep", lambda trials: {"wall": 20 + 1.5 * trials, "driver": 9.0})
    monkeypatch.setattr(sys, "argv", ["", "--out", str(tmp_path / "out.json")])
    main()
    assert json.loads((tmp_path / "out.json").read_text())["per_trial"] == {"wall": 1.5, "driver": 0.0}


def test_a_sweep_that_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXPERIMENT, "fl", {"rounds": "none"})
    with pytest.raises(RuntimeError, match=r"fl\.rounds"):
        trial_overhead.sweep(1)
