"""How `fedveil run` ends, and what `fedveil report` finds in the record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient
from rich.console import Console

from fedveil.orchestrator import commands
from fedveil.orchestrator.cli import main
from fedveil.orchestrator.config import Experiment
from fedveil.orchestrator.interrupts import can_be_resumed
from fedveil.orchestrator.report import TrialRow
from fedveil.orchestrator.report.recorded import rows_as_json, rows_from_mlflow
from fedveil.orchestrator.run.checkpoint import save_records
from fedveil.orchestrator.run.paths import ExperimentPaths
from fedveil.orchestrator.run.results import RunResult
from fedveil.orchestrator.run.setup import Setup
from fedveil.orchestrator.tracking import logins
from fedveil.orchestrator.tracking.names import KIND_TAG

CONNECT = "fedveil.orchestrator.run.api.connect"


def test_a_log_leaves_no_column_out_and_a_window_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ["utility/accuracy", "utility/clean_accuracy", "privacy/mse", "privacy/trained_mse", "privacy/baseline_mse"]
    keys += ["privacy/psnr", "privacy/ssim", "privacy/identification_rate", "cost/train_seconds", "cost/attack_seconds"]
    row = TrialRow("t", "FINISHED", {"defense.name": "latent", "seed": 0}, dict.fromkeys(keys, 0.5))
    monkeypatch.setattr("fedveil.orchestrator.report.recorded.rows_from_mlflow", lambda *_: [row])
    monkeypatch.setattr("fedveil.orchestrator.report.recorded.records_from_mlflow", lambda *_: {})
    said = {}
    for columns in (None, "60"):
        monkeypatch.delenv("COLUMNS", raising=False) if columns is None else monkeypatch.setenv("COLUMNS", columns)
        assert main(["report", "x"]) == 0
        said[columns] = capsys.readouterr().out
    assert "SSIM" in said[None]
    assert "Left out" not in said[None]
    assert "Left out where the window is narrow: " in " ".join(said["60"].split())


def test_results_that_the_disk_does_not_take_hide_nothing_else(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = TrialRow("t", "FAILED", {"defense.name": "latent"}, {}, error="boom")
    monkeypatch.setattr("fedveil.orchestrator.report.recorded.rows_from_mlflow", lambda *_: [row])
    monkeypatch.setattr("fedveil.orchestrator.report.recorded.records_from_mlflow", lambda *_: {})
    assert main(["report", "x", "--json", "/dev/full"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "--json: /dev/full: No space left on device; fedveil report x --json FILE writes the same" in said
    assert "boom" in said
    assert main(["report", "x", "--json", "/dev/null"]) == 0


@contextmanager
def _connected(*arguments: object, **options: object) -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    ("status", "code", "uri", "option"),
    [
        ("FINISHED", 0, "sqlite:///mlflow.db", ""),
        ("FAILED", 1, "http://ann:secret@mlflow:5000", " --uri http://mlflow:5000"),
        ("KILLED", 0, "sqlite:////somewhere/else.db", " --uri sqlite:////somewhere/else.db"),
    ],
)
def test_a_run_writes_its_results_and_says_whether_it_failed(
    status: str,
    code: int,
    uri: str,
    option: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run_single(experiment: Experiment, setup: Setup, console: Console, *, resume: bool) -> RunResult:
        assert experiment.fl.rounds == 3
        assert not resume
        assert len(setup.shards) == experiment.fl.clients
        metrics = {"utility/accuracy": 0.5, "privacy/mse": float("nan")}
        row = TrialRow("t", status, {"seed": 0}, metrics, None if status == "FINISHED" else "boom")
        own = ExperimentPaths(folder).trial("t")
        own.folder.mkdir(parents=True)
        save_records((), own.records)
        own.grid.touch()
        return RunResult("tiny", (row,), folder, uri)

    monkeypatch.setattr(CONNECT, _connected)
    monkeypatch.setattr("fedveil.orchestrator.run.single.run_single", run_single)
    assert main(["run", "tiny.yaml", "--set", "fl.rounds=3", "--json", "r.json"]) == code
    ended = capsys.readouterr().out.splitlines()[-4:]
    assert ended[:2] == ["pictures    trials/t/reconstruction.png", "per trial   trials"]
    # The shell in which they are typed may not have the job's variables.
    assert ended[2].endswith(f"fedveil ui{option}")
    assert ended[3].endswith(f"fedveil report tiny{option} --html tiny.html")
    written = json.loads(
        (folder / "r.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON")
    )
    assert written == {
        "experiment": "tiny",
        "trials": [
            {
                "name": "t",
                "status": status,
                "params": {"seed": 0},
                "metrics": {"utility/accuracy": 0.5, "privacy/mse": None},
                "error": None if status == "FINISHED" else "boom",
            }
        ],
        "settings": [
            {"name": "t", "seeds": [0], "metrics": {"utility/accuracy": 0.5, "privacy/mse": None}, "intervals": {}}
        ]
        if status == "FINISHED"
        else [],
    }


def test_interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*arguments: object, resume: bool) -> None:
        if not resume:
            can_be_resumed()
        raise KeyboardInterrupt

    monkeypatch.setattr(CONNECT, _connected)
    monkeypatch.setattr("fedveil.orchestrator.run.single.run_single", interrupt)
    monkeypatch.setattr("sys.argv", ["/usr/bin/fedveil"])
    assert main(["run", "tiny.yaml", "--set", "tracking.uri=http://me:secret@127.0.0.1:9"]) == 130
    again = "fedveil run tiny.yaml --set tracking.uri=http://127.0.0.1:9 --resume"
    assert capsys.readouterr().err == f"fedveil: interrupted; go on with: {again}\n"
    assert main(["run", "tiny.yaml", "--resume"]) == 130  # before it was found
    assert capsys.readouterr().err == "fedveil: interrupted; go on with: fedveil run tiny.yaml --resume\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A record with two experiments; the first has a sweep with a finished and a failed trial."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('record') / 'mlflow.db'}"
    client = MlflowClient(uri)
    first, _ = client.create_experiment("first"), client.create_experiment("second")
    for start, (name, kind, status) in enumerate(
        [("sweep", "sweep", "FINISHED"), ("b", "trial", "FINISHED"), ("a", "trial", "FAILED")]
    ):
        run = client.create_run(first, start_time=start, tags={KIND_TAG: kind}, run_name=name).info.run_id
        client.log_param(run, "defense.name", "latent")
        client.log_metric(run, "privacy/mse", 0.25)
        if status == "FAILED":
            client.set_tag(run, "error", "boom")
        client.set_terminated(run, status)
    return uri


def test_trials_come_back_from_mlflow_oldest_first(store: str) -> None:
    rows = rows_from_mlflow(store, "first")
    params, metrics = {"defense.name": "latent"}, {"privacy/mse": 0.25}
    assert rows == [
        TrialRow("b", "FINISHED", params, metrics),
        TrialRow("a", "FAILED", params, metrics, "boom"),
    ]
    assert rows_from_mlflow(store, "second") == []
    assert [trial["name"] for trial in rows_as_json("first", rows)["trials"]] == ["b", "a"]


def test_a_named_record_has_the_login_of_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the commands have it that are printed at the end of a run."""
    monkeypatch.setattr(logins, "_given", {})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@host:5000")
    for named in (None, "http://host:5000"):
        assert commands._uri(named) == "http://me:hunter2@host:5000"
    assert commands._uri("http://other:5000") == "http://other:5000"


def test_report(store: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert main(["report", "first", "--json", "r.json"]) == 0
    assert [trial["status"] for trial in json.loads((folder / "r.json").read_text())["trials"]] == [
        "FINISHED",
        "FAILED",
    ]
    assert "boom" in capsys.readouterr().out
    assert main(["report", "third"]) == 2
    assert capsys.readouterr().err == f"fedveil: no experiment 'third' at {store}; there are: first, second\n"
