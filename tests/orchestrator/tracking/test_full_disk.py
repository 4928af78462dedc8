"""What a full disk costs: nothing once it has room, and never in silence."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from disk import full_disk
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from fedveil.orchestrator.tracking import SweepTracker, TrackingSettings, TrialTracker, replay
from fedveil.orchestrator.tracking.delivery import Sender
from fedveil.orchestrator.tracking.names import ABANDONED, ERROR_TAG, INCOMPLETE_TAG
from fedveil.orchestrator.tracking.operations import Operation
from fedveil.orchestrator.tracking.spool import Journal, Spool


def trial(where: TrackingSettings, parent: str | None = None, run_id: str | None = None) -> TrialTracker:
    return TrialTracker(where, parent_run_id=parent, name="trial", params={"seed": 0}, run_id=run_id)


def log(tracker: TrialTracker, rounds: range) -> None:
    for step in rounds:
        tracker.log_curve({"fl/accuracy": step / 128, "fl/loss": -step / 128}, step)


def trial_run(where: TrackingSettings) -> Run:
    client = MlflowClient(where.uri)
    experiment = client.get_experiment_by_name(where.experiment)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "tags.`fedveil.kind` = 'trial'")
    return run


def points(where: TrackingSettings, run: Run) -> set[tuple[str, int, float]]:
    history = MlflowClient(where.uri).get_metric_history
    keys = ("fl/accuracy", "fl/loss")
    found = [(key, point.step, point.value) for key in keys for point in history(run.info.run_id, key)]
    assert len(found) == len(set(found))
    return set(found)


def logged(rounds: int) -> set[tuple[str, int, float]]:
    return {
        point for step in range(rounds) for point in (("fl/accuracy", step, step / 128), ("fl/loss", step, -step / 128))
    }


def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the spool take nothing more, while the store has room."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("append", "_write", "keep"):
        monkeypatch.setattr(Journal, name, full)


@pytest.mark.parametrize("room", [0, 1, 30, 200])
def test_a_disk_that_was_full_for_a_while_costs_nothing(where: TrackingSettings, room: int) -> None:
    with trial(where) as tracker:
        log(tracker, range(3))
        (journal,) = Spool(where.spool_folder).journals()
        with full_disk((journal.folder / "journal.jsonl").stat().st_size + room):
            log(tracker, range(3, 60))
        log(tracker, range(60, 64))
    assert replay(where.spool_folder).runs == 1
    run = trial_run(where)
    assert (run.info.status, points(where, run)) == ("FINISHED", logged(64))
    assert INCOMPLETE_TAG not in run.data.tags


def test_a_run_that_ends_on_a_full_disk_is_sent_without_it(
    where: TrackingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trial(where) as tracker:
        log(tracker, range(3))
        no_room(monkeypatch)
        log(tracker, range(3, 9))
    run = trial_run(where)
    assert (run.info.status, points(where, run)) == ("FINISHED", logged(9))
    assert replay(where.spool_folder).runs == 0


def test_a_run_of_which_a_part_is_lost_is_killed_with_an_error_until_it_is_resumed(
    where: TrackingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = SweepTracker(where, name="sweep")
    with trial(where, sweep.run_id) as tracker, monkeypatch.context() as patch:
        log(tracker, range(3))
        no_room(patch)
        log(tracker, range(3, 9))
        patch.setattr(Sender, "deliver_beyond", lambda sender, rest: False)  # no server either
        tracker.finish()
    sweep.finish()
    assert replay(where.spool_folder).waiting == 0
    run = trial_run(where)
    assert (run.info.status, run.data.tags[ERROR_TAG], points(where, run)) == ("KILLED", ABANDONED, logged(3))
    with trial(where, sweep.run_id, run_id=tracker.run_id) as resumed:
        log(resumed, range(3, 9))
    assert replay(where.spool_folder).waiting == 0
    run = trial_run(where)
    assert (run.info.status, points(where, run)) == ("FINISHED", logged(9))
    assert ERROR_TAG not in run.data.tags


def test_a_trial_that_outlives_its_sweep_has_the_last_word(where: TrackingSettings) -> None:
    """The sweep has closed the run, and what was delivered of it is deleted."""
    sweep = SweepTracker(where, name="sweep")
    slow = trial(where, sweep.run_id)
    log(slow, range(2))
    sweep.finish()
    assert (replay(where.spool_folder).runs, Spool(where.spool_folder).journals()) == (2, [])
    assert trial_run(where).data.tags[ERROR_TAG] == ABANDONED
    log(slow, range(2, 4))
    slow.finish()
    assert replay(where.spool_folder).runs == 1
    run = trial_run(where)
    assert (run.info.status, points(where, run)) == ("FINISHED", logged(4))
    assert ERROR_TAG not in run.data.tags


def test_files_that_a_full_disk_does_not_take_wait_in_memory(
    where: TrackingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "table.json"
    table.write_text("x" * 1000)
    with trial(where) as tracker:
        with full_disk(100):
            tracker.log_file(table, "tables")
        table.write_text("changed since")
        (journal,) = Spool(where.spool_folder).journals()
        assert not list(journal.folder.glob("files/*/*"))
        log(tracker, range(1))
        (copy,) = journal.folder.glob("files/*/*")
        assert (copy.stat().st_mode & 0o777, copy.read_text()) == (0o600, "x" * 1000)
        assert str(tmp_path) not in (journal.folder / "journal.jsonl").read_text().partition("Artifact")[2]
    assert replay(where.spool_folder).runs == 1
    run = trial_run(where)
    assert run.info.status == "FINISHED"
    assert INCOMPLETE_TAG not in run.data.tags
    (file,) = MlflowClient(where.uri).list_artifacts(run.info.run_id, "tables")
    assert (file.path, file.file_size) == ("tables/table.json", 1000)
    assert not Spool(where.spool_folder).journals()


def test_files_of_a_run_that_ends_on_a_full_disk_are_sent_without_it(
    where: TrackingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "table.json"
    table.write_text("x" * 1000)
    with trial(where) as tracker:
        no_room(monkeypatch)
        tracker.log_file(table)
    run = trial_run(where)
    assert run.info.status == "FINISHED"
    (file,) = MlflowClient(where.uri).list_artifacts(run.info.run_id)
    assert (file.path, file.file_size) == ("table.json", 1000)


def test_what_is_made_for_the_record_alone_is_named_where_no_disk_takes_it(where: TrackingSettings) -> None:
    with trial(where) as tracker, full_disk(10):  # not even the scratch file of a picture or a text
        tracker.log_image(np.zeros((4, 4)), "grid/reconstruction", 0)
        tracker.log_dict({"a": "b" * 100}, "config.yaml")
    assert replay(where.spool_folder).runs == 1
    assert trial_run(where).data.tags[INCOMPLETE_TAG].startswith("config.yaml was not recorded: [Errno 27]")


def test_a_disk_that_is_full_from_the_start_costs_nothing_once_it_has_room(
    where: TrackingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        no_room(patch)
        tracker = trial(where)
        log(tracker, range(3))
        assert tracker.run_id.startswith("pending-")
    named = tracker.run_id
    log(tracker, range(3, 5))
    assert tracker.run_id == named
    tracker.finish()
    assert replay(where.spool_folder).runs == 1
    assert points(where, trial_run(where)) == logged(5)


def test_what_waits_in_memory_is_written_in_order(where: TrackingSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = trial(where)
    append, told = Journal.append, []

    def sometimes(journal: Journal, operation: Operation) -> None:
        told.append(operation)
        if len(told) % 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(journal, operation)

    monkeypatch.setattr(Journal, "append", sometimes)
    log(tracker, range(7))
    monkeypatch.undo()
    log(tracker, range(7, 8))
    (journal,) = Spool(where.spool_folder).journals()
    steps = [getattr(operation, "step", -1) for _, operation in journal.read()]
    assert steps == [-1, -1, *range(8)]
