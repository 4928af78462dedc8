"""Requests that the server carries out although the client hears nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from benchmarks.faults.servers import losing_answers
from fedveil.orchestrator.tracking import TrackingSettings, TrialTracker, replay


class Server(Protocol):
    uri: str


def whole_life(where: TrackingSettings, before_the_end: Callable[[], object] = lambda: None) -> TrialTracker:
    """It is delivered bit by bit."""
    with TrialTracker(where, parent_run_id=None, name="trial", params={"seed": 0}) as tracker:
        for step in range(3):
            replay(where.spool_folder)
            tracker.log_curve({"fl/loss": step / 8}, step)
        replay(where.spool_folder)
        before_the_end()
    replay(where.spool_folder)
    return tracker


def assert_recorded_once(uri: str, experiment: str) -> Run:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    (run,) = client.search_runs([found.experiment_id])
    assert (run.info.status, run.data.params) == ("FINISHED", {"seed": "0"})
    history = client.get_metric_history(run.info.run_id, "fl/loss")
    assert [(point.step, point.value) for point in history] == [(0, 0.0), (1, 0.125), (2, 0.25)]
    return run


@pytest.mark.parametrize(("retries", "to"), [("0", "runs/create"), ("2", "runs/create"), ("2", "runs/log-batch")])
def test_a_request_whose_answer_was_lost_leaves_one_run_and_each_point_once(
    mlflow_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retries: str, to: str
) -> None:
    """Also where the user has MLflow's client send each request again."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", retries)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    experiment = f"lost-{to.replace('/', '-')}-{retries}"
    with losing_answers(mlflow_server.uri, to=to, times=2) as uri:
        whole_life(TrackingSettings(experiment=experiment, uri=uri, spool=tmp_path))
    assert_recorded_once(mlflow_server.uri, experiment)
    assert replay(tmp_path).runs == 0


def test_a_run_that_a_slow_server_made_after_all_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create, late = MlflowClient.create_run, []

    def slow(*args: Any, **kwargs: Any) -> Run:
        if not late:
            late.append(lambda: create(*args, **kwargs))
            raise MlflowException("no answer in time")
        return create(*args, **kwargs)

    monkeypatch.setattr(MlflowClient, "create_run", slow)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    where = TrackingSettings(experiment="late", uri=uri, spool=tmp_path / "spool")
    tracker = whole_life(where, before_the_end=lambda: late[0]())
    assert assert_recorded_once(uri, "late").info.run_id == tracker.run_id
