"""What a damaged spool costs: never an exception, never another run's record, and never in silence."""

from __future__ import annotations

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from fedveil.orchestrator.tracking import SweepTracker, TrackingSettings, TrialTracker, replay
from fedveil.orchestrator.tracking.names import INCOMPLETE_TAG
from fedveil.orchestrator.tracking.operations import Damaged, Operation
from fedveil.orchestrator.tracking.spool import Journal, Spool

DAMAGED = [
    b"5",
    b"{}",
    b"null",
    b"[]",
    b'"text"',
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"operation": "Later", "x": 1}',
    b'{"operation": ["Tags"]}',
    b'{"operation": "Tags"}',
    b'{"operation": "Points", "values": {"fl/loss": 9.0}, "step": 0, "time": 1, "unit": "s"}',
    b'{"operation": "Points", "values": 3, "step": 0, "time": 1}',
    b'{"operation": "Close", "status": null, "time": 1}',
]
"""Halves of lines, other data, a newer version's operation and field, wrong types."""


def trial(where: TrackingSettings, run_id: str | None = None) -> TrialTracker:
    return TrialTracker(where, parent_run_id=None, name="trial", params={"seed": 0}, run_id=run_id)


def log(tracker: TrialTracker, rounds: range) -> None:
    for step in rounds:
        tracker.log_curve({"fl/loss": step / 8}, step)


def journal_of(where: TrackingSettings) -> Journal:
    (journal,) = Spool(where.spool_folder).journals()
    return journal


def only_run(where: TrackingSettings) -> tuple[Run, list[tuple[int, float]]]:
    """The experiment's one run, and the points of its loss."""
    client = MlflowClient(where.uri)
    experiment = client.get_experiment_by_name(where.experiment)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return run, [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "fl/loss")]


@pytest.mark.parametrize("line", DAMAGED, ids=lambda line: line[:40].decode("latin-1"))
def test_a_damaged_line_is_a_value_error(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of the text, of JSON or of pydantic
        Operation.decode(line.decode())


def test_damaged_lines_are_named_in_the_run_and_hold_up_nothing(where: TrackingSettings) -> None:
    tracker = trial(where)
    log(tracker, range(2))
    lines = journal_of(where).folder / "journal.jsonl"
    with lines.open("ab") as file:
        file.writelines(line + b"\n" for line in DAMAGED)
    log(tracker, range(2, 4))
    tracker.finish()
    assert sum(isinstance(operation, Damaged) for _, operation in journal_of(where).read()) == len(DAMAGED)
    done = replay(where.spool_folder)
    assert (done.runs, done.waiting, done.refused) == (1, 0, len(DAMAGED))
    run, points = only_run(where)
    assert run.info.status == "FINISHED"
    assert points == [(step, step / 8) for step in range(4)]
    assert "Damaged was not recorded" in run.data.tags[INCOMPLETE_TAG]
    kept = (journal_of(where).folder / "rejected.jsonl").read_text()
    assert kept.count('"operation": "Damaged"') == len(DAMAGED)
    assert replay(where.spool_folder).refused == 0


@pytest.mark.parametrize("line", [*DAMAGED, b""], ids=lambda line: line[:40].decode("latin-1"))
def test_a_run_that_ended_before_a_damaged_line_is_not_taken_for_killed(where: TrackingSettings, line: bytes) -> None:
    with SweepTracker(where, name="sweep") as sweep:
        with TrialTracker(where, parent_run_id=sweep.run_id, name="trial", params={}) as tracker:
            log(tracker, range(2))
        (journal,) = [one for one in Spool(where.spool_folder).journals() if one.token in tracker.run_id]
        with (journal.folder / "journal.jsonl").open("ab") as file:
            file.write(line + b"\n")
    replay(where.spool_folder)
    client = MlflowClient(where.uri)
    experiment = client.get_experiment_by_name(where.experiment)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    assert {run.info.run_name: run.info.status for run in found} == {"sweep": "FINISHED", "trial": "FINISHED"}


def test_a_run_whose_first_line_is_damaged_is_opened_by_a_later_one(where: TrackingSettings) -> None:
    tracker = trial(where)
    log(tracker, range(2))
    again = trial(where, run_id=tracker.run_id)
    log(again, range(1, 3))
    again.finish()
    lines = journal_of(where).folder / "journal.jsonl"
    lines.write_bytes(b"null\n" + lines.read_bytes().partition(b"\n")[2])
    assert replay(where.spool_folder).runs == 1
    run, points = only_run(where)
    assert (run.info.status, points) == ("FINISHED", [(0, 0.0), (1, 0.125), (2, 0.25)])
    assert INCOMPLETE_TAG in run.data.tags


def test_a_journal_that_names_no_run_is_said_once_and_holds_up_no_other(
    where: TrackingSettings, caplog: pytest.LogCaptureFixture
) -> None:
    with trial(where) as lost:
        log(lost, range(2))
    lines = journal_of(where).folder / "journal.jsonl"
    lines.write_bytes(b"5\n" + lines.read_bytes().partition(b"\n")[2])
    with trial(where) as other:
        log(other, range(2))
    for _ in range(2):
        assert replay(where.spool_folder).waiting == 0
    assert only_run(where)[1] == [(0, 0.0), (1, 0.125)]
    assert caplog.text.count("its first line is damaged") == 1
    assert lines.exists()


@pytest.mark.parametrize("name", ["acked", "run_id"])
def test_damaged_marks_repeat_and_drop_nothing(where: TrackingSettings, name: str) -> None:
    tracker = trial(where)
    log(tracker, range(2))
    tracker.log_dict({"a": 1}, "config/a.yaml")  # whose copy here is deleted once it is sent
    assert replay(where.spool_folder).runs == 1
    for number, mark in enumerate((b"", b"99", b"-1", b"\xff", b"a" * 31, b"\0" * 32)):
        (journal_of(where).folder / name).write_bytes(mark)
        log(tracker, range(2 + number, 3 + number))
        assert replay(where.spool_folder).runs == 1
    tracker.finish()
    assert replay(where.spool_folder).runs == 1
    run, points = only_run(where)
    assert (run.info.status, points) == ("FINISHED", [(step, step / 8) for step in range(8)])
    assert INCOMPLETE_TAG not in run.data.tags
