from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient
from ray.tune.search import basic_variant
from tiny import share_cache, tiny_experiment, write_bars

from fedveil.orchestrator.metrics import CURVES
from fedveil.orchestrator.run import api

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.slow]


def test_trials_with_equal_ids_and_equal_draws_share_neither_run_nor_folder(
    tmp_path: Path, modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Panel and search number their trials alike, as two generators do that Tune makes within a tick of its clock."""
    monkeypatch.chdir(share_cache(tmp_path, modules))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    ticks = SimpleNamespace(uuid1=lambda: SimpleNamespace(hex="abcdef0123456789"))
    monkeypatch.setattr(basic_variant, "uuid", ticks)
    search = {
        "panel": [{"defense": "none"}],
        "space": {"fl.learning_rate": {"choice": [0.05]}},
        "samples": 2,
        "searcher": "random",
    }
    raw = tiny_experiment(write_bars(tmp_path / "bars.npz"), audit={"rounds": [0]}, search=search)
    result = api.sweep(raw)
    ids = sorted(path.relative_to(path.parents[1]).as_posix() for path in tmp_path.glob("runs/tiny/tune/*/*/abcde_*"))
    assert ids == ["panel/abcde_00000", "search/abcde_00000", "search/abcde_00001"]

    names = ["learning_rate=0.05", "learning_rate=0.05-2", "none"]
    rows = {row.name: row for row in result.rows}
    assert sorted(rows) == names
    assert all(row.finished for row in rows.values())
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'tiny'")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == [*names, "tiny"]
    assert len({run.info.run_id for run in runs.values()}) == 4
    for name in names:
        run = runs[name]
        assert run.info.status == "FINISHED"
        assert {key: run.data.metrics[key] for key in rows[name].metrics} == pytest.approx(rows[name].metrics)
        for curve in CURVES:
            points = client.get_metric_history(run.info.run_id, curve.name)
            assert [point.step for point in points] == [0, 1], curve.name
        written = json.loads((result.folders[name] / "metrics.json").read_text())
        assert written == rows[name].metrics
