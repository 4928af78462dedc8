from __future__ import annotations

import io
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny import tiny_experiment, write_bars

from fedveil.orchestrator.config import check
from fedveil.orchestrator.report.recorded import rows_from_mlflow
from fedveil.orchestrator.run import single
from fedveil.orchestrator.run.single import run_single
from fedveil.orchestrator.run.trial import TrialPaths
from fedveil.orchestrator.tracking import TrialTracker


class _Idle:
    """A trial that only records a number."""

    def __init__(self, experiment: object, executor: object, files: TrialPaths, say: object) -> None:
        assert files.folder.is_dir()

    def run(self, tracker: TrialTracker) -> dict[str, float]:
        tracker.log_final({"privacy/mse": 0.25})
        return {"privacy/mse": 0.25}


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(single, "RayExecutor", lambda *arguments, **options: nullcontext())
    monkeypatch.setattr(single, "Trial", _Idle)
    return tiny_experiment(write_bars(tmp_path / "bars.npz"))


def run(raw: dict[str, Any], **sections: Any) -> tuple[str, str]:
    """Return the trial's name and what was printed."""
    screen = io.StringIO()
    row = run_single(check({**raw, **sections}), Console(file=screen, width=300))
    return row.name, screen.getvalue()


def test_a_second_run_has_a_folder_and_an_mlflow_run_of_its_own(raw: dict[str, Any], tmp_path: Path) -> None:
    names = [run(raw)[0] for _ in range(2)]
    assert names == ["none-seed0", "none-seed0-2"]
    assert sorted(path.name for path in (tmp_path / "runs/tiny/trials").iterdir()) == names
    assert [row.name for row in rows_from_mlflow(f"sqlite:///{tmp_path / 'mlflow.db'}", "tiny")] == names


def test_records_that_wait_are_named_and_delivered_by_the_next_run(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*arguments: object) -> None:
        raise ConnectionError("nobody there")

    with monkeypatch.context() as patch:
        patch.setattr("fedveil.orchestrator.tracking.remote.RemoteRun", away)
        _, said = run(raw)
    assert f"MLflow did not take the records of 1 run(s): they wait in {tmp_path / 'runs/tiny/spool'}" in said
    _, said = run(raw)
    assert "wait in" not in said
    rows = rows_from_mlflow(f"sqlite:///{tmp_path / 'mlflow.db'}", "tiny")
    assert sorted(row.name for row in rows) == ["none-seed0", "none-seed0-2"]
    assert {row.metrics["privacy/mse"] for row in rows} == {0.25}


def test_the_password_of_the_server_is_not_printed(raw: dict[str, Any]) -> None:
    _, said = run(raw, tracking={"uri": "http://user:secret@127.0.0.1:9"})
    assert "recorded in http://127.0.0.1:9" in said
    assert "secret" not in said
