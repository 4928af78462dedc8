from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import cores
from fedveil.orchestrator.config import load_experiment
from fedveil.orchestrator.run.tuning import settings_of

ROOT = Path(__file__).parents[2]


def test_the_sweep_has_eight_trials():
    checked, _ = load_experiment(ROOT / cores.SWEEP, cores.TRIALS, ())
    assert checked.search is not None
    assert settings_of(checked.search) == 8


def test_only_marked_processes_are_counted():
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    asked = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        subprocess.Popen([sys.executable, "-c", code], env={**os.environ, cores.MARK: "a"}, **asked) as ours,
        subprocess.Popen([sys.executable, "-c", code], env={**os.environ, cores.MARK: "b"}, **asked) as other,
    ):
        for one in (ours, other):
            one.stdout.readline()
        found = cores.processes("a")
        for one in (ours, other):
            one.communicate("\n")
    assert list(found) == [ours.pid]
    title, seconds = found[ours.pid]
    assert title == sys.executable
    assert seconds >= 0.2


def test_a_sweep_that_fails_leaves_no_record(monkeypatch, tmp_path):
    monkeypatch.setattr(cores, "TRIALS", ["fl.rounds=no-number"])
    with pytest.raises(RuntimeError, match=r"fl\.rounds"):
        cores.measured([])
