"""The MLflow server that docs/clusters.md describes: over PostgreSQL, behind a password."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from mlflow import MlflowClient
from postgres import POSTGRES, postgres

from benchmarks.faults.servers import MlflowServer, free_port
from fedveil.orchestrator.tracking import SweepTracker, TrackingSettings, TrialTracker, replay

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(POSTGRES is None, reason="needs PostgreSQL: apt-get install postgresql"),
]
PASSWORD = "only-for-this-test"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    # pytest's own folders are closed to the user that the database runs as.
    with TemporaryDirectory() as outer:
        Path(outer).chmod(0o755)
        with postgres(Path(outer) / "data") as store:
            own = MlflowServer(
                tmp_path_factory.mktemp("mlflow"),
                free_port(),
                store=store,
                arguments=("--app-name", "basic-auth"),
                environment={"MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD, "MLFLOW_FLASK_SERVER_SECRET_KEY": "of this test"},
            )
            own.start()
            try:
                yield own
            finally:
                own.stop()


@pytest.fixture
def where(server: MlflowServer, tmp_path: Path, request: pytest.FixtureRequest) -> TrackingSettings:
    return TrackingSettings(experiment=request.node.name, uri=server.uri, spool=tmp_path / "spool")


def login(monkeypatch: pytest.MonkeyPatch, password: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)


def test_a_sweep_is_recorded(where: TrackingSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    login(monkeypatch, PASSWORD)
    with (
        SweepTracker(where, name="sweep", objectives={"utility/accuracy": "max"}) as sweep,
        TrialTracker(where, parent_run_id=sweep.run_id, name="trial", params={"seed": 3}) as trial,
    ):
        for step in range(30):
            trial.log_curve({"fl/loss": 1.0 / (1 + step)}, step)
        trial.log_final({"utility/accuracy": 0.75})
        trial.log_dict({"seed": 3}, "experiment.yaml")
        assert replay(where.spool_folder).waiting == 0
    assert replay(where.spool_folder).runs == 2
    client = MlflowClient(where.uri)
    run = client.get_run(trial.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["seed"] == "3"
    assert run.data.metrics["utility/accuracy"] == 0.75
    assert run.data.tags["mlflow.parentRunId"] == sweep.run_id
    assert len(client.get_metric_history(trial.run_id, "fl/loss")) == 30
    assert [one.path for one in client.list_artifacts(trial.run_id)] == ["experiment.yaml"]


def test_what_a_wrong_password_keeps_back_is_delivered_with_the_right_one(
    where: TrackingSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    login(monkeypatch, "wrong")
    with TrialTracker(where, parent_run_id=None, name="trial", params={"seed": 3}) as trial:
        trial.log_final({"utility/accuracy": 0.75})
    assert replay(where.spool_folder).waiting == 1
    assert "it refuses the login; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in caplog.text
    login(monkeypatch, PASSWORD)
    assert replay(where.spool_folder).runs == 1
    client = MlflowClient(where.uri)
    found = client.get_experiment_by_name(where.experiment)
    assert found is not None
    (run,) = client.search_runs([found.experiment_id])
    assert (run.info.status, run.data.metrics["utility/accuracy"]) == ("FINISHED", 0.75)
