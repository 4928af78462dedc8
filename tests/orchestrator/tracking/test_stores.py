"""Stores that are away, fresh, or asked by several processes at once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from benchmarks.faults.servers import mute
from fedveil.orchestrator.tracking import TrackingSettings, TrialTracker, database, delivering, replay
from fedveil.orchestrator.tracking.database import build_database
from fedveil.orchestrator.tracking.delivery import Sender
from fedveil.orchestrator.tracking.operations import Operation


def whole_life(uri: str, spool: Path, experiment: str) -> TrialTracker:
    where = TrackingSettings(experiment=experiment, uri=uri, spool=spool)
    with TrialTracker(where, parent_run_id=None, name="trial", params={}) as tracker:
        tracker.log_curve({"fl/loss": 0.5}, 0)
    return tracker


def statuses(uri: str, experiment: str) -> list[str]:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    return [] if found is None else [run.info.status for run in client.search_runs([found.experiment_id])]


@pytest.mark.parametrize("away", ["http://127.0.0.1:9", "postgresql://u:x@127.0.0.1:9/x", "mysql://127.0.0.1:9/x"])
def test_a_store_that_is_away_for_ever_holds_up_no_other(
    away: str, store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"away {away[:5]}"
    for uri in (away, away, store, store):
        whole_life(uri, tmp_path, name)
    done = replay(tmp_path)
    assert (done.runs, done.waiting) == (2, 2)
    assert statuses(store, name) == ["FINISHED", "FINISHED"]
    # MLflow would ask a database ten times, and say so each time.
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("MLflow does not take the record (Connection refused)")


def test_a_database_that_accepts_and_never_answers_holds_up_no_other(store: str, tmp_path: Path) -> None:
    with mute() as port:
        whole_life(f"postgresql://u:x@127.0.0.1:{port}/x", tmp_path, "mute")
        whole_life(store, tmp_path, "mute")
        said: list[str] = []
        with delivering(tmp_path, said.append, patience=3.0):
            pass
        assert statuses(store, "mute") == ["FINISHED"]
        assert len(said) == 1
        assert "MLflow did not take the records of 1 run(s)" in said[0]


def test_a_journal_that_cannot_be_sent_holds_up_no_other_of_its_store(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned = whole_life(store, tmp_path, "poison").run_id.removeprefix("pending-")
    whole_life(store, tmp_path, "poison")
    send = Sender._send

    def fail(sender: Sender, operation: Operation) -> None:
        if sender.journal.token == poisoned:
            raise AssertionError("a fault of ours")
        send(sender, operation)

    monkeypatch.setattr(Sender, "_send", fail)
    done = replay(tmp_path)
    assert (done.runs, done.waiting) == (1, 1)
    assert statuses(store, "poison") == ["FINISHED"]


def at_once(works: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_threads_of_a_process_build_their_files_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The migrations' globals are shared by all of them."""
    building: list[Path] = []
    together: list[int] = []

    def slowly(place: Path) -> None:
        building.append(place)
        time.sleep(0.2)
        together.append(len(building))
        place.write_bytes(b"whole")
        building.remove(place)

    monkeypatch.setattr(database, "_build", slowly)
    uris = [f"sqlite:///{tmp_path / name}" for name in ("one.db", "other.db", "third.db")]
    at_once([lambda uri=uri: build_database(uri) for uri in uris])  # type: ignore[misc]
    assert together == [1, 1, 1]


def test_one_of_those_that_start_at_once_builds_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Path] = []

    def slowly(place: Path) -> None:
        built.append(place)
        place.write_bytes(b"half")
        time.sleep(0.2)
        assert (tmp_path / "mlflow.db").stat().st_size == 0
        place.write_bytes(b"whole")

    monkeypatch.setattr(database, "_build", slowly)
    (tmp_path / "mlflow.db").touch()  # an empty file is a fresh database, too
    (tmp_path / ".mlflow.db.new").write_bytes(b"of a process that died")
    at_once([lambda: build_database(f"sqlite:///{tmp_path}/mlflow.db")] * 4)
    assert len(built) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    assert (tmp_path / "mlflow.db").read_bytes() == b"whole"


def test_a_build_that_fails_leaves_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(place: Path) -> None:
        place.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(database, "_build", fail)
    for _ in range(2):
        with pytest.raises(OSError, match="no space left"):
            build_database(f"sqlite:///{tmp_path}/mlflow.db")
    assert [path.name for path in tmp_path.iterdir()] == [".mlflow.db.lock"]
    for other in ("http://host", "sqlite://", "postgresql://host/db"):
        build_database(other)


@pytest.mark.slow
def test_processes_that_start_at_once_in_a_fresh_folder_lose_nothing(tmp_path: Path) -> None:
    """Their migrations of one file wrecked it for good."""
    script = (
        "import sys, pathlib\n"
        "from fedveil.orchestrator.tracking import TrackingSettings, TrialTracker, replay\n"
        "where = TrackingSettings(experiment=sys.argv[1], spool=pathlib.Path('spool', sys.argv[1]))\n"
        "with TrialTracker(where, parent_run_id=None, name='trial', params={}) as tracker:\n"
        "    tracker.log_curve({'fl/loss': 0.5}, 0)\n"
        "    assert replay(where.spool_folder).runs == 1\n"
        "    assert not tracker.run_id.startswith('pending-'), tracker.run_id\n"
        "assert replay(where.spool_folder).runs == 1\n"
    )
    names = ["a", "b", "c"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    processes = [
        subprocess.Popen([sys.executable, "-c", script, name], cwd=tmp_path, env=environment) for name in names
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    for name in names:
        assert statuses(f"sqlite:///{tmp_path}/mlflow.db", name) == ["FINISHED"]
    assert {path.name for path in tmp_path.iterdir()} <= {"mlflow.db", "spool", "mlartifacts"}
