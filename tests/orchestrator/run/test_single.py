from __future__ import annotations

import io
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from tiny import tiny_experiment, write_bars

from fedveil.fl.rounds import ServerState
from fedveil.orchestrator.config import check
from fedveil.orchestrator.config.yaml import parse
from fedveil.orchestrator.report.recorded import rows_from_mlflow
from fedveil.orchestrator.run import setting, single
from fedveil.orchestrator.run.callbacks import TrialCallback, TrialResult
from fedveil.orchestrator.run.checkpoint import Progress
from fedveil.orchestrator.run.setup import check_setups
from fedveil.orchestrator.run.single import run_single


class _Idle:
    """A trial that only has a number to tell."""

    def __init__(self, *arguments: object, cache: Path, callbacks: Sequence[TrialCallback]) -> None:
        self.callbacks = callbacks

    def run(self, resumed: Progress | None) -> TrialResult:
        result = TrialResult(Progress(ServerState(round=2, weights={})), {"privacy/mse": 0.25, "utility/accuracy": 0.5})
        for callback in self.callbacks:
            callback.on_final(result)
        return result


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(single, "RayExecutor", lambda *arguments, **options: nullcontext(SimpleNamespace()))
    monkeypatch.setattr(single, "progress_on", lambda console, name: nullcontext())
    monkeypatch.setattr(single, "check_fit", lambda *arguments, **options: None)
    monkeypatch.setattr(setting, "Trial", _Idle)
    return tiny_experiment(write_bars(tmp_path / "bars.npz"))


def run(raw: dict[str, Any], **sections: Any) -> tuple[list[str], str]:
    """Return the trials' names and what was printed."""
    screen = io.StringIO()
    experiment = check({**raw, **sections})
    result = run_single(experiment, check_setups(experiment, {**raw, **sections}), Console(file=screen, width=300))
    return [row.name for row in result.rows], screen.getvalue()


def test_a_second_run_has_a_folder_and_an_mlflow_run_of_its_own(raw: dict[str, Any], tmp_path: Path) -> None:
    names = [run(raw)[0] for _ in range(2)]
    assert names == [["none-seed0"], ["none-seed0-2"]]
    assert sorted(path.name for path in (tmp_path / "runs/tiny/trials").iterdir()) == ["none-seed0", "none-seed0-2"]
    recorded = rows_from_mlflow(f"sqlite:///{tmp_path / 'mlflow.db'}", "tiny")
    assert [row.name for row in recorded] == ["none-seed0", "none-seed0-2"]


def test_no_other_user_reads_what_a_run_leaves(raw: dict[str, Any], tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        run(raw)
    finally:
        os.umask(before)
    left = [tmp_path / "runs", *(tmp_path / "runs").rglob("*")]
    assert {"experiment.yaml", "metrics.json", "privacy_records.json"} <= {path.name for path in left}
    open_ones = [path for path in left if path.stat().st_mode & 0o077]
    assert open_ones == []


def test_each_seed_has_a_folder_and_an_mlflow_run_of_its_own(raw: dict[str, Any], tmp_path: Path) -> None:
    names, _ = run(raw, seeds=[3, 1])
    assert names == ["none-seed3", "none-seed1"]
    for name in names:
        written = parse((tmp_path / "runs/tiny/trials" / name / "experiment.yaml").read_text())
        assert f"none-seed{written['seed']}" == name
        assert "seeds" not in written
    recorded = rows_from_mlflow(f"sqlite:///{tmp_path / 'mlflow.db'}", "tiny")
    assert {row.name: row.params["seed"] for row in recorded} == {"none-seed3": 3, "none-seed1": 1}


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
