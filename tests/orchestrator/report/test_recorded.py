from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import PrivacyRecord, ThreatModel
from fedveil.orchestrator import commands
from fedveil.orchestrator.cli import main
from fedveil.orchestrator.report.recorded import records_from_mlflow, rows_from_mlflow
from fedveil.orchestrator.run.checkpoint import save_records
from fedveil.orchestrator.tracking.names import KIND_TAG, RECORDS

PARAMS: dict[str, Any] = {
    "defense.name": "latent",
    "fl.clients": 4,
    "seed": -1,
    "defense.strength": 1.0,
    "fl.learning_rate": 1e-05,
    "model.name": "1_000",
    "data.name": "nan",
    "a": "007",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A record with one trial that failed."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('record') / 'mlflow.db'}"
    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment("old"), tags={KIND_TAG: "trial"}, run_name="t").info.run_id
    for key, value in PARAMS.items():
        client.log_param(run, key, value)
    client.set_terminated(run, "FAILED")
    return uri


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, from which no server is started."""

    def started(*arguments: object) -> None:
        raise AssertionError("this would have started MLflow's server")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(commands.os, "execv", started)
    return tmp_path


def test_params_are_numbers_as_a_runs_own_json_has_them(store: str, folder: Path) -> None:
    (row,) = rows_from_mlflow(store, "old")
    assert dict(row.params) == PARAMS
    assert [type(value) for value in row.params.values()] == [type(PARAMS[key]) for key in row.params]
    # A report of trials that failed is a report all the same.
    assert main(["report", "old", "--uri", store, "--json", "r.json"]) == 0
    (trial,) = json.loads((folder / "r.json").read_text())["trials"]
    assert trial["status"] == "FAILED"
    assert trial["params"] == PARAMS


def test_the_victims_records_come_back_from_mlflow_where_the_names_are_clear(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{folder / 'records.db'}"
    client = MlflowClient(uri)
    experiment = client.create_experiment("e", (folder / "artifacts").as_uri())
    record = PrivacyRecord("adaptive", ThreatModel(), 0, 1, 2, 3, 4, mse=0.25, psnr=6.0, ssim=0.5, label_recovered=True)
    save_records((record,), folder / RECORDS)
    (folder / "old").mkdir()
    (folder / "old" / RECORDS).write_text((folder / RECORDS).read_text().replace("baseline_mse", "floor_mse"))
    for name, status, recorded in (
        ("kept", "FINISHED", folder / RECORDS),
        ("again", "FINISHED", folder / RECORDS),
        ("again", "FINISHED", folder / RECORDS),
        ("failed", "FAILED", folder / RECORDS),
        ("without", "FINISHED", None),
        ("old", "FINISHED", folder / "old" / RECORDS),
    ):
        run = client.create_run(experiment, tags={KIND_TAG: "trial"}, run_name=name).info.run_id
        if recorded is not None:
            client.log_artifact(run, str(recorded))
        client.set_terminated(run, status)
    capsys.readouterr()
    assert records_from_mlflow(uri, "e") == {"kept": (record,)}
    assert "Downloading" not in capsys.readouterr().err  # MLflow's own progress bar
    with pytest.raises(FedveilError, match=r"no experiment 'f' at .*; there are: e"):
        records_from_mlflow(uri, "f")


RULE = "allowed: sqlite:///FILE, http://HOST:PORT, https://HOST, "


@pytest.mark.parametrize("command", [["report", "old"], ["ui"]])
@pytest.mark.parametrize(
    ("uri", "line"),
    [
        ("./mlruns", f"MLflow's tracking URI: given './mlruns'; {RULE}"),
        ("htp://x", f"MLflow's tracking URI: given 'htp://x'; {RULE}"),
        ("httpx", f"MLflow's tracking URI: given 'httpx'; {RULE}"),
        ("sqlite:///garbage.db", "sqlite:///garbage.db: this file is no SQLite database"),
        ("sqlite:///absent.db", "sqlite:///absent.db: there is no record here yet; run an experiment first"),
        ("sqlite:///.", "sqlite:///.: cannot be read (Is a directory)"),
        (f"sqlite:///{'x' * 300}", f"sqlite:///{'x' * 300}: cannot be read (File name too long)"),
        ("mysql+nosuchdriver://me:secret@h/d", "MLflow at mysql+nosuchdriver://h/d does not answer ("),
        ("postgres://me:secret@h/d", f"MLflow's tracking URI: given 'postgres://h/d'; {RULE}"),
    ],
)
@pytest.mark.parametrize("by_variable", [False, True])
def test_a_record_that_cannot_be_is_one_line(
    command: list[str],
    uri: str,
    line: str,
    by_variable: bool,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (folder / "garbage.db").write_text("no database, but text that is long enough to be looked at", encoding="utf-8")
    if by_variable:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    else:
        command = [*command, "--uri", uri]
    assert main(command) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"fedveil: {line}")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert "secret" not in said.err


def test_the_address_of_a_server_is_shown_without_its_password(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ui", "--uri", "https://me:secret@server"]) == 0
    assert capsys.readouterr().out == "MLflow runs at https://server\n"
