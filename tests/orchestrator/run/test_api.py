"""Experiments run from Python, and from the command line in a folder that is full of traps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tiny import PLUGIN, share_cache, tiny_experiment, write_bars

import fedveil as fv
from fedveil.fl.errors import FedveilError
from fedveil.orchestrator.config.yaml import dump

TRAPS = ("fl", "attacks", "defense", "orchestrator")


@pytest.mark.slow
def test_a_run_returns_rows_records_and_folders_and_says_nothing(
    ray_cluster: None,
    tmp_path: Path,
    modules: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(share_cache(tmp_path, modules))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    raw = tiny_experiment(write_bars(tmp_path / "bars.npz"), tracking={"images": "all"})
    result = fv.run(raw, overrides=["fl.rounds=1", "audit.rounds=[0]", "audit.victims=2"])
    (row,) = result.rows
    assert capsys.readouterr() == ("", "")
    assert (row.name, row.status, row.params["seed"]) == ("none-seed0", "FINISHED", 0)
    assert len(result.records[row.name]) == 2 * 3  # victims, attacks
    files = {file.name for file in result.folders[row.name].iterdir()}
    assert files == {"experiment.yaml", "metrics.json", "privacy_records.json", "pictures.pt", "reconstruction.png"}
    assert json.loads((result.folders[row.name] / "metrics.json").read_text()) == row.metrics
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    found = client.get_experiment_by_name("tiny")
    assert found is not None
    (run,) = client.search_runs([found.experiment_id])
    recorded = {Path(file.path).name.partition("+")[0] for file in client.list_artifacts(run.info.run_id, "images")}
    kinds = ("original", "trained_on", "baseline", "inverting_gradients", "adaptive_modules")
    assert recorded == {"grid~reconstruction", *(f"victim~{number}_{kind}" for number in (0, 1) for kind in kinds)}


@pytest.mark.parametrize(
    ("call", "search", "said"),
    [
        (fv.run, {"panel": [{"defense": "none"}]}, "has a 'search' section; run it with"),
        (fv.sweep, None, "has no 'search' section; run it with"),
    ],
)
def test_run_and_sweep_refuse_each_others_files(
    call: object, search: object, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = tiny_experiment(Path("bars.npz")) | ({} if search is None else {"search": search})
    other = "sweep" if call is fv.run else "run"
    assert callable(call)
    with pytest.raises(FedveilError, match=f"this experiment {said} fedveil.{other}"):
        call(raw)
    Path("e.yaml").write_text(dump(raw))
    with pytest.raises(FedveilError, match=f"e.yaml: {said}: fedveil {other} e.yaml"):
        call("e.yaml")


@pytest.mark.long
def test_a_folder_with_packages_of_the_same_names_and_a_plugin(tmp_path: Path) -> None:
    """Neither the driver nor a worker imports the user's own packages; both import the plug-in."""
    for name in TRAPS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong package was imported')")
    (tmp_path / "mine.py").write_text(PLUGIN)
    write_bars(tmp_path / "bars.npz")
    raw = tiny_experiment(Path("bars.npz"), defense={"name": "darken"}, fl={"rounds": 1}, audit={"rounds": [0]})
    raw["audit"]["attacks"] = [{"name": "grey", "level": 0.25}]
    (tmp_path / "e.yaml").write_text(dump(raw))
    command = [str(Path(sys.executable).with_name("fedveil")), "run", "e.yaml", "--plugin", "./mine.py"]
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("RAY_ADDRESS", "MLFLOW_TRACKING"))
    }
    done = subprocess.run(
        [*command, "--json", "out.json"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (trial,) = json.loads((tmp_path / "out.json").read_text())["trials"]
    assert trial["params"]["defense.name"] == "darken"
    assert trial["metrics"]["attack/grey/mse"] > 0
