"""Delivery that no run waits for."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from benchmarks.faults.servers import mute as mute_server
from fedveil.orchestrator.tracking import Replayed, TrackingSettings, TrialTracker, background, delivering
from fedveil.orchestrator.tracking.names import ABANDONED, ERROR_TAG
from fedveil.orchestrator.tracking.spool import Spool


def quiet(line: str) -> None:
    raise AssertionError(line)


def trial(where: TrackingSettings, name: str = "trial") -> TrialTracker:
    return TrialTracker(where, parent_run_id=None, name=name, params={})


def statuses(where: TrackingSettings) -> dict[str, tuple[str, str]]:
    client = MlflowClient(where.uri)
    found = client.get_experiment_by_name(where.experiment)
    assert found is not None
    return {
        str(run.info.run_name): (run.info.status, run.data.tags.get(ERROR_TAG, ""))
        for run in client.search_runs([found.experiment_id])
    }


def test_it_delivers_while_the_block_runs_once_more_at_its_end_and_then_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often, within = threading.Event(), [True]
    seen: list[bool] = []

    def replay(spool: Path) -> Replayed:
        seen.append(within[0])
        if len(seen) == 3:
            often.set()
        return Replayed(runs=1, waiting=0, refused=0)

    monkeypatch.setattr(background, "replay", replay)
    with delivering(tmp_path, quiet, every=0.01):
        assert often.wait(60)
        within[0] = False
    assert seen[-1] is False
    after = len(seen)
    often.clear()
    often.wait(0.1)
    assert len(seen) == after


def test_what_was_written_last_is_delivered(where: TrackingSettings) -> None:
    with delivering(where.spool_folder, quiet, every=1e6), trial(where) as tracker:
        tracker.log_curve({"fl/loss": 0.5}, 0)
    assert statuses(where) == {"trial": ("FINISHED", "")}
    assert Spool(where.spool_folder).journals() == []


def test_a_delivery_that_never_ends_holds_up_nobody_and_what_waits_is_said(
    where: TrackingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = threading.Event()
    monkeypatch.setattr(background, "replay", lambda spool: Replayed(0, int(never.wait()), 0))
    said: list[str] = []
    with delivering(where.spool_folder, said.append, patience=0.1), trial(where):
        pass
    never.set()
    waiting = (
        f"MLflow did not take the records of 1 run(s): they wait in {where.spool_folder} for the next run or sweep of"
    )
    assert said == [f"{waiting} {where.spool_folder.parent.name}, or this one's --resume"]


def test_a_server_that_accepts_and_never_answers_keeps_a_run_for_one_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the run records meanwhile, nothing of it waits; at the end the store is asked once."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    said: list[str] = []
    with mute_server() as port:
        where = TrackingSettings(experiment="e", uri=f"http://127.0.0.1:{port}", spool=tmp_path / "spool")
        with delivering(where.spool_folder, said.append):
            for number in range(3):
                with trial(where, f"trial {number}") as tracker:
                    tracker.log_curve({"fl/loss": 0.5}, 0)
    assert "did not take the records of 3 run(s)" in said[0]


def test_runs_of_dead_processes_are_closed_and_others_are_not(where: TrackingSettings) -> None:
    script = (
        "import os, pickle, signal, sys\n"
        "from fedveil.orchestrator.tracking import TrialTracker\n"
        "where = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "tracker = TrialTracker(where, parent_run_id=None, name='dead', params={})\n"
        "tracker.log_curve({'fl/loss': 0.5}, 0)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    words = [sys.executable, "-c", script, pickle.dumps(where).hex()]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    assert subprocess.run(words, env=environment).returncode == -signal.SIGKILL
    trial(where, "done").finish()
    with trial(where, "alive") as alive:
        for _ in range(2):
            with delivering(where.spool_folder, quiet):
                alive.log_curve({"fl/loss": 0.5}, 0)
        assert statuses(where) == {
            "dead": ("KILLED", ABANDONED),
            "done": ("FINISHED", ""),
            "alive": ("RUNNING", ""),
        }
