from __future__ import annotations

from pathlib import Path

import pytest

from fedveil.orchestrator.report import TrialRow
from fedveil.orchestrator.run.checkpoint import save_records
from fedveil.orchestrator.run.paths import ExperimentPaths
from fedveil.orchestrator.run.results import summarise_sweep


def row(name: str, accuracy: float, mse: float, status: str = "FINISHED", **extra: float) -> TrialRow:
    metrics = {"utility/accuracy": accuracy, "privacy/mse": mse, "privacy/complete": 1.0, **extra}
    return TrialRow(name, status, {"defense.name": "latent"}, metrics)


def test_the_outcome_of_a_sweep(tmp_path: Path) -> None:
    rows = [row("a", 0.9, 0.01), row("b", 0.8, 0.02), row("c", 0.7, 0.015), TrialRow("d", "FAILED", error="boom")]
    outcome = summarise_sweep("x", rows, ExperimentPaths(tmp_path), "sqlite:///x.db")
    assert [r.name for r in outcome.front] == ["a", "b"]  # b beats c in both
    assert outcome.metrics == {
        "sweep/trials": 4.0,
        "sweep/failed": 1.0,
        "sweep/pareto_front": 2.0,
        "sweep/hypervolume": pytest.approx(0.9 * 0.01 + 0.8 * 0.01),
    }
    assert outcome.files == (tmp_path / "pareto.png",)
    assert outcome.files[0].read_bytes().startswith(b"\x89PNG")
    assert outcome.folders["b"] == tmp_path / "trials" / "b"


@pytest.mark.parametrize("damage", [b"", b"[{", b"{}", b'[{"mse": 1}]', b"[1]", b"\xff", None])
def test_a_file_of_a_finished_trial_that_is_damaged_or_gone_costs_its_records_alone(
    damage: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = ExperimentPaths(tmp_path)
    for name in "ab":
        save_records((), paths.trial(name).records)
        paths.trial(name).pictures.write_bytes(b"PK damaged")
    file = paths.trial("b").records
    file.unlink() if damage is None else file.write_bytes(damage)
    outcome = summarise_sweep("x", [row("a", 0.9, 0.01), row("b", 0.8, 0.02)], paths, "sqlite:///x.db")
    assert outcome.files == (tmp_path / "pareto.png",)
    if damage != b"{}":  # that holds no record, and none is there
        assert outcome.records == {"a": ()}
        assert f"{file} is damaged or gone, and left out" in caplog.text
    assert f"{paths.trial('a').pictures} is damaged or gone" in caplog.text


def test_a_collapsed_or_incomplete_trial_is_on_no_front(tmp_path: Path) -> None:
    rows = [row("a", 0.9, 0.01), row("b", 0.95, 0.02, **{"defense/collapsed": 1.0})]
    rows.append(row("c", 0.95, 0.02, **{"privacy/complete": 0.0}))
    outcome = summarise_sweep("x", rows, ExperimentPaths(tmp_path), "sqlite:///x.db")
    assert [r.name for r in outcome.front] == ["a"]


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    uri = "http://ann:secret@mlflow:5000"
    outcome = summarise_sweep("x", [TrialRow("d", "FAILED", error="boom")], ExperimentPaths(tmp_path), uri)
    assert outcome.uri == uri
    assert "secret" not in repr(outcome)


def test_a_sweep_of_failures_draws_nothing(tmp_path: Path) -> None:
    outcome = summarise_sweep("x", [TrialRow("d", "FAILED", error="boom")], ExperimentPaths(tmp_path), "sqlite:///x.db")
    assert (outcome.front, outcome.files, list(tmp_path.iterdir())) == ((), (), [])
    assert outcome.records == {}
