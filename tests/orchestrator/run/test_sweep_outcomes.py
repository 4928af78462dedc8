"""How a sweep's trials end: failed, stopped early, and with a run for each seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from tiny import share_cache, tiny_experiment

from fedveil.orchestrator import cli
from fedveil.orchestrator.config.yaml import dump
from fedveil.orchestrator.report.recorded import rows_from_mlflow
from fedveil.orchestrator.run import api
from fedveil.orchestrator.run import sweep as sweep_module
from fedveil.orchestrator.run.trainable import rows_of

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.slow]


def test_the_command_line_writes_json_and_fails_with_a_failed_trial(
    bars: Path, tmp_path: Path, modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(share_cache(tmp_path, modules))
    search = {"panel": [{"fl.learning_rate": 0.1}, {"fl.learning_rate": 1e30}]}
    Path("e.yaml").write_text(dump(tiny_experiment(bars, search=search)))
    assert cli.main(["sweep", "e.yaml", "--json", "out.json"]) == 1
    trials = json.loads(Path("out.json").read_text())["trials"]
    assert sorted(t["status"] for t in trials) == ["FAILED", "FINISHED"]
    assert cli.main(["report", "tiny", "--json", "again.json"]) == 0
    again = json.loads(Path("again.json").read_text())["trials"]
    assert {t["name"]: t["status"] for t in again} == {t["name"]: t["status"] for t in trials}
    # The failed trial is tried again, and fails again, in the MLflow run that it has.
    assert cli.main(["sweep", "e.yaml", "--resume"]) == 1
    resumed = rows_from_mlflow(f"sqlite:///{tmp_path / 'mlflow.db'}", "tiny")
    assert {row.name: row.status for row in resumed} == {t["name"]: t["status"] for t in trials}
    assert len(resumed) == 2


def test_asha_stops_a_trial_early(bars: Path, tmp_path: Path, modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(share_cache(tmp_path, modules))
    raw = tiny_experiment(
        bars,
        fl={"rounds": 6},
        audit={"rounds": [0]},
        search={
            "space": {"fl.learning_rate": {"grid": [0.2, 1e-6]}},
            "searcher": "random",
            "scheduler": "asha",
            "objectives": {"fl/accuracy": "max"},
            "concurrent": 1,
        },
    )
    outcome = api.sweep(raw)
    assert sorted(row.status for row in outcome.rows) == ["FINISHED", "KILLED"]
    (stopped,) = [row for row in outcome.rows if row.status == "KILLED"]
    assert stopped.params == {**stopped.params, "defense.name": "none"}
    assert "learning_rate=1e-06" in stopped.name
    recorded = {row.name: row.status for row in rows_from_mlflow(f"sqlite:///{tmp_path / 'mlflow.db'}", "tiny")}
    assert recorded == {row.name: row.status for row in outcome.rows}


def test_each_seed_has_a_run_of_its_own_and_the_searcher_sees_the_mean(
    bars: Path, tmp_path: Path, modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(share_cache(tmp_path, modules))
    panel = [{"defense": "none"}]
    raw = tiny_experiment(bars, seeds=[5, 6], fl={"rounds": 1}, audit={"rounds": [0]}, search={"panel": panel})
    told: list[Any] = []
    monkeypatch.setattr(
        sweep_module, "rows_of", lambda result, base: told.append(result.metrics) or rows_of(result, base)
    )
    result = api.sweep(raw)
    assert [(row.name, row.params["seed"]) for row in result.rows] == [("none-seed5", 5), ("none-seed6", 6)]
    for name in ("utility/val_accuracy", "privacy/mse"):
        assert told[0][name] == pytest.approx(sum(row.metrics[name] for row in result.rows) / 2)
    assert {r.seed for r in result.records["none-seed6"]} == {6}
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    for row in result.rows:
        assert runs[row.name].data.params["seed"] == str(row.params["seed"])
        assert runs[row.name].data.metrics["privacy/mse"] == pytest.approx(row.metrics["privacy/mse"])
        assert runs[row.name].data.tags["mlflow.parentRunId"] == runs["tiny"].info.run_id
    alone = api.run({**{k: v for k, v in raw.items() if k not in ("seeds", "search")}, "seed": 6})
    same = [name for name in alone.rows[0].metrics if not name.startswith("cost/")]
    assert {name: alone.rows[0].metrics[name] for name in same} == {name: result.rows[1].metrics[name] for name in same}


@pytest.mark.long
def test_a_resumed_trial_keeps_the_seeds_that_are_done(
    bars: Path, tmp_path: Path, modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second seed's records fall on a folder that cannot be made; once it can, only that seed is run."""
    monkeypatch.chdir(share_cache(tmp_path, modules))
    panel = [{"defense": "none"}]
    raw = tiny_experiment(bars, seeds=[5, 6], fl={"rounds": 1}, audit={"rounds": [0]}, search={"panel": panel})
    obstacle = tmp_path / "runs/tiny/trials/none-seed6"
    obstacle.parent.mkdir(parents=True)
    obstacle.touch()
    before = api.sweep(raw)
    assert [row.status for row in before.rows] == ["FINISHED", "FAILED"]
    (tmp_path / "runs/tiny/trials/none-seed5/metrics.json").unlink()
    obstacle.unlink()
    after = api.sweep(raw, resume=True)
    assert [row.status for row in after.rows] == ["FINISHED", "FINISHED"]
    assert after.rows[0].metrics == before.rows[0].metrics
    assert not (tmp_path / "runs/tiny/trials/none-seed5/metrics.json").exists()
    recorded = rows_from_mlflow(f"sqlite:///{tmp_path / 'mlflow.db'}", "tiny")
    assert sorted((row.name, row.status) for row in recorded) == [
        ("none-seed5", "FINISHED"),
        ("none-seed6", "FINISHED"),
    ]
