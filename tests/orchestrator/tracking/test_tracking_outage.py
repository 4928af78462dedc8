from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from typing import Any, Protocol

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from fedveil.orchestrator.tracking import SweepTracker, TrackingSettings, TrialTracker, delivery, replay
from fedveil.orchestrator.tracking.delivery import Sender
from fedveil.orchestrator.tracking.operations import Open, Operation, Tags
from fedveil.orchestrator.tracking.spool import Journal, Spool

SENDING = ("create_run", "log_batch", "log_artifact", "set_terminated", "set_experiment_tag")


class Server(Protocol):
    uri: str

    def start(self) -> None: ...
    def stop(self) -> None: ...


def experiment_of(client: MlflowClient, name: str) -> Experiment:
    found = client.get_experiment_by_name(name)
    assert found is not None
    return found


def log_rounds(tracker: TrialTracker, rounds: range) -> None:
    for step in rounds:
        tracker.log_curve({"fl/accuracy": step / 8, "fl/loss": 1.0 - step / 8}, step)


def last_words(tracker: TrialTracker) -> list[Callable[[], None]]:
    return [
        lambda: tracker.log_image(np.zeros((4, 4, 3)), "grid/reconstruction", 3),
        lambda: tracker.log_dict({"seed": 0}, "config/trial.yaml"),
        lambda: tracker.log_final({"utility/accuracy": 0.75, "privacy/mse": 0.25}),
        tracker.finish,
    ]


def end(tracker: TrialTracker) -> None:
    for one in last_words(tracker):
        one()


def open_trial(where: TrackingSettings, parent: str) -> TrialTracker:
    params = {"defense.strength": 0.5}
    return TrialTracker(where, parent_run_id=parent, name="trial", params=params, swept=["defense.strength"])


def record(client: MlflowClient, run_id: str) -> dict[str, Any]:
    """All that there is to know of a run, but for its ids and times."""
    run = client.get_run(run_id)
    folders = [file.path for file in client.list_artifacts(run_id)]
    return {
        "status": run.info.status,
        "params": run.data.params,
        "metrics": {
            key: [(point.step, point.value) for point in client.get_metric_history(run_id, key)]
            for key in run.data.metrics
        },
        "artifacts": {
            file.path: file.file_size for folder in folders for file in client.list_artifacts(run_id, folder)
        },
        "tags": {key for key in run.data.tags if not key.startswith("error")},
    }


def trials_of(client: MlflowClient, experiment: str) -> list[str]:
    found = experiment_of(client, experiment)
    runs = client.search_runs([found.experiment_id], "tags.`fedveil.kind` = 'trial'", order_by=["start_time ASC"])
    return [run.info.run_id for run in runs]


@pytest.mark.slow
def test_a_server_that_is_away_at_the_start_in_the_middle_and_at_the_end_loses_and_doubles_nothing(
    own_mlflow_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server = own_mlflow_server
    where = TrackingSettings(experiment="e", uri=server.uri, spool=tmp_path / "spool")
    sweep = SweepTracker(where, name="sweep")
    disturbed = open_trial(where, sweep.run_id)
    log_rounds(disturbed, range(2))
    assert replay(where.spool_folder).waiting == 2
    assert disturbed.run_id.startswith("pending-")
    server.start()
    assert replay(where.spool_folder).waiting == 0
    log_rounds(disturbed, range(2, 3))
    assert replay(where.spool_folder).waiting == 0
    client = MlflowClient(server.uri)
    assert client.get_metric_history(disturbed.run_id, "fl/loss")[-1].step == 2
    undisturbed = open_trial(where, sweep.run_id)
    log_rounds(undisturbed, range(4))
    end(undisturbed)
    assert replay(where.spool_folder).waiting == 0
    server.stop()
    log_rounds(disturbed, range(3, 4))
    assert replay(where.spool_folder).waiting == 1
    end(disturbed)
    sweep.summary({"sweep/trials": 2})
    sweep.finish()
    assert replay(where.spool_folder).waiting == 2
    assert len(Spool(where.spool_folder).journals()) == 2
    server.start()
    done = replay(where.spool_folder)
    assert (done.runs, done.waiting, done.refused) == (2, 0, 0)
    assert replay(where.spool_folder).runs == 0
    first, second = trials_of(client, "e")
    assert record(client, first) == record(client, second)
    assert record(client, first)["metrics"] == {
        "swept/defense.strength": [(0, 0.5)],
        "fl/accuracy": [(0, 0.0), (1, 0.125), (2, 0.25), (3, 0.375)],
        "fl/loss": [(0, 1.0), (1, 0.875), (2, 0.75), (3, 0.625)],
        "utility/accuracy": [(0, 0.75)],
        "privacy/mse": [(0, 0.25)],
    }
    (parent,) = client.search_runs(["1"], "tags.`fedveil.kind` = 'sweep'")
    assert parent.info.status == "FINISHED"
    for run_id in (first, second):
        assert client.get_run(run_id).data.tags["mlflow.parentRunId"] == parent.info.run_id


@contextmanager
def calls_that_fail(plan: list[str]) -> Iterator[None]:
    """Let the client's sending calls fail as planned: before they do anything, or after they did it all."""
    rest = iter(plan)

    def failing(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            fate = next(rest, "works")
            if fate == "lost":
                raise MlflowException("no answer")
            result = call(*args, **kwargs)
            if fate == "unanswered":
                raise MlflowException("the answer was lost")
            return result

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for name in SENDING:
            patch.setattr(MlflowClient, name, failing(getattr(MlflowClient, name)))
        yield


@pytest.fixture(scope="module")
def spools(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    return lambda: tmp_path_factory.mktemp("spool")


def whole_life(where: TrackingSettings) -> None:
    """After each thing that is recorded a delivery is tried."""
    with SweepTracker(where, name="sweep") as sweep:
        replay(where.spool_folder)
        trial = open_trial(where, sweep.run_id)
        replay(where.spool_folder)
        for step in range(3):
            log_rounds(trial, range(step, step + 1))
            replay(where.spool_folder)
        for one in last_words(trial):
            one()
            replay(where.spool_folder)
    replay(where.spool_folder)


@given(plan=st.lists(st.sampled_from(["works", "lost", "unanswered"]), max_size=30))
@settings(max_examples=6)
def test_whichever_calls_fail_the_record_equals_an_undisturbed_one(
    plan: list[str], store: str, spools: Callable[[], Path]
) -> None:
    spool = spools()
    client = MlflowClient(store)
    for name, failures in (("undisturbed", []), (spool.name, plan)):
        where = TrackingSettings(experiment=name, uri=store, spool=spool)
        if name != "undisturbed" or client.get_experiment_by_name(name) is None:
            with calls_that_fail(failures):
                whole_life(where)
            replay(spool)
    (expected,), (found,) = trials_of(client, "undisturbed"), trials_of(client, spool.name)
    assert record(client, found) == record(client, expected)
    assert replay(spool).runs == 0


def test_a_crash_between_sending_and_noting_it_repeats_nothing(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = TrackingSettings(experiment="crash", uri=store, spool=tmp_path)
    tracker = open_trial(where, SweepTracker(where, name="sweep").run_id)
    assert replay(tmp_path).waiting == 0
    client = MlflowClient(store)

    def rounds() -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in client.get_metric_history(tracker.run_id, "fl/accuracy")]

    def crash(journal: Journal, lines: int) -> None:
        raise RuntimeError("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "acknowledge", crash)
        log_rounds(tracker, range(1))
        assert replay(tmp_path).waiting == 1
    assert rounds() == [(0, 0.0)]
    log_rounds(tracker, range(1, 3))
    assert replay(tmp_path).waiting == 0
    assert rounds() == [(0, 0.0), (1, 0.125), (2, 0.25)]


def test_a_spool_that_cannot_be_written_stops_no_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    where = TrackingSettings(experiment="e", uri="http://127.0.0.1:9", spool=tmp_path / "file")
    with SweepTracker(where, name="sweep") as sweep, open_trial(where, sweep.run_id) as trial:
        log_rounds(trial, range(2))
        end(trial)


def opening(token: str, parent: str | None, when: int) -> Open:
    return Open(token, "http://127.0.0.1:9", "e", "name", parent, None, {}, when)


def test_a_server_that_does_not_answer_is_asked_once_for_all_its_journals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = []

    def refuse(sender: Sender) -> None:
        tries.append(sender.journal.token)
        raise ConnectionError("refused")

    monkeypatch.setattr(delivery.Sender, "_connect", refuse)
    spool = Spool(tmp_path)
    for token, parent, when in (("child", "p", 1), ("younger", None, 3), ("older", None, 2)):
        spool.start(opening(token, parent, when))
    spool.start(replace(opening("elsewhere", None, 4), uri="http://127.0.0.1:10"))
    assert [journal.token for journal in spool.journals()] == ["older", "younger", "elsewhere", "child"]
    done = replay(tmp_path)
    assert (done.runs, done.waiting, sorted(tries)) == (0, 4, ["elsewhere", "older"])  # two stores, side by side
    assert replay(tmp_path).waiting == 4
    assert sorted(tries) == sorted(2 * ["elsewhere", "older"])
    assert caplog.text.count("MLflow does not take the record") == 2  # of each journal once


def test_a_line_that_a_dying_process_left_unfinished_is_skipped(tmp_path: Path) -> None:
    journal = Spool(tmp_path).start(opening("t", None, 1))
    with (journal.folder / "journal.jsonl").open("ab") as lines:
        lines.write(b'{"operation": "Tags", "ta')
    assert [number for number, _ in journal.read()] == [0]
    journal.append(Tags({"a": "1"}))  # takes its place
    journal.append(Tags({"b": "2"}))
    assert [operation for _, operation in journal.read(1)] == [Tags({"a": "1"}), Tags({"b": "2"})]


def test_only_one_process_at_a_time_delivers_a_journal(tmp_path: Path) -> None:
    journal = Spool(tmp_path).start(opening("t", None, 1))
    with journal.delivering() as first, Journal(journal.folder).delivering() as second:
        assert (first, second) == (True, False)
    with journal.delivering() as again:
        assert again
    assert (journal.folder / "lock").stat().st_mode & 0o777 == 0o600


def test_what_another_process_delivered_and_deleted_is_not_brought_back(tmp_path: Path) -> None:
    journal = Spool(tmp_path).start(opening("t", None, 1))
    rmtree(journal.folder)
    with journal.delivering() as mine:
        assert not mine
    assert not journal.folder.exists()


def test_the_spool_is_for_its_owner_only(tmp_path: Path) -> None:
    journal = Spool(tmp_path / "spool").start(opening("t", None, 1))
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700
    picture = tmp_path / "picture.png"
    picture.touch()
    journal.keep(picture)
    journal.acknowledge(1)
    journal.name_run("0" * 32)
    journal.reject(Tags({}), ValueError())
    inside = list(journal.folder.rglob("*"))
    assert len(inside) == 8
    for path in (journal.folder, *inside):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600) or path.name == "files"


@given(tags=st.dictionaries(st.text(), st.text(), max_size=3))
def test_an_operation_survives_its_line(tags: dict[str, str]) -> None:
    operation = Tags(tags)
    assert "\n" not in operation.encode()
    assert Operation.decode(operation.encode()) == operation
