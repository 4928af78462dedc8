from __future__ import annotations

import io
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mlflow import MlflowClient
from rich.console import Console
from tiny import TINY_LATENT, tiny_experiment, write_bars

from fedveil.fl.errors import FedveilError
from fedveil.fl.executor import SerialExecutor
from fedveil.orchestrator import checkpoint, cli
from fedveil.orchestrator.cluster.executor import RayExecutor
from fedveil.orchestrator.config import check, with_overrides
from fedveil.orchestrator.config.space import corners
from fedveil.orchestrator.report.recorded import rows_from_mlflow
from fedveil.orchestrator.run.names import trial_name
from fedveil.orchestrator.run.outcome import SweepOutcome
from fedveil.orchestrator.run.paths import ExperimentPaths, tracking_settings
from fedveil.orchestrator.run.sweep import run_sweep
from fedveil.orchestrator.run.trial import Trial, params_of
from fedveil.orchestrator.tracking import TrialTracker

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.slow]

CONTROLS = [{"defense": "none"}, {"defense": {"name": "pixel_noise", "strength": 0.3}}]


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bars(tmp_path_factory.mktemp("data") / "bars.npz")


def sweep(raw: dict[str, Any]) -> tuple[SweepOutcome, str]:
    screen = io.StringIO()
    outcome = run_sweep(check(raw), raw, Console(file=screen, width=200))
    return outcome, screen.getvalue()


@pytest.fixture(scope="module")
def swept(bars: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepOutcome, str, Path]:
    """A sweep with a panel, a two-objective Optuna search, and one trial that fails (FedAdam cannot be had of 1e30)."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("sweep")
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        shutil.copy(bars, folder / "here.npz")
        raw = tiny_experiment(
            Path("here.npz"),
            defense=TINY_LATENT,
            search={
                "panel": [*CONTROLS, {"defense": "none", "fl.learning_rate": 1e30}],
                "space": {"defense.strength": {"loguniform": [0.5, 2.0]}},
                "samples": 2,
                "searcher": "optuna",
            },
        )
        outcome, screen = sweep(raw)
    return outcome, screen, folder


def test_a_sweep_runs_panel_and_search_and_names_its_trials(swept: tuple[SweepOutcome, str, Path]) -> None:
    outcome, screen, _ = swept
    rows = {row.name: row for row in outcome.rows}
    assert len(rows) == 5
    assert {"none", "pixel_noise_strength=0.3", "none_learning_rate=1e+30"} < set(rows)
    assert sum(row.defense == "latent" for row in rows.values()) == 2
    assert all(0.5 <= row.strength <= 2 for row in rows.values() if row.defense == "latent" and row.strength)
    for words in ("preparing", "audit of round 0", "round 2/2", "done: accuracy"):
        assert words in screen
    finished = [row for row in rows.values() if row.finished]
    assert len(finished) == 4
    for row in finished:
        assert {"utility/accuracy", "utility/auc", "utility/clean_accuracy", "privacy/mse"} < set(row.metrics)
        assert all(math.isfinite(value) for value in row.metrics.values())


def test_the_record_has_a_parent_and_children_with_status_names_and_artifacts(
    swept: tuple[SweepOutcome, str, Path],
) -> None:
    _, _, folder = swept
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["sweep/trials"] == 5
    assert parent.data.metrics["sweep/failed"] == 1
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in children.values())
    broken = children.pop("none_learning_rate=1e+30")
    assert broken.info.status == "FAILED"
    assert "the training loss is" in broken.data.tags["error"]
    assert len(children) == 4
    for run in children.values():
        assert run.info.status == "FINISHED"
        assert run.data.params["data.name"] == "npz:here.npz"
        assert [m.step for m in client.get_metric_history(run.info.run_id, "fl/accuracy")] == [0, 1]
        assert len(client.get_metric_history(run.info.run_id, "privacy/mse")) == 1
        names = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert {"experiment.yaml", "privacy_records.json", "images"} <= names
        if run.data.params["defense.name"] == "latent":
            assert run.data.metrics["swept/defense.strength"] == float(run.data.params["defense.strength"])


def test_headline_is_the_worst_case_over_attacks_and_rounds(swept: tuple[SweepOutcome, str, Path]) -> None:
    outcome, _, folder = swept
    for row in outcome.rows:
        if not row.finished:
            continue
        records = json.loads((folder / f"runs/tiny/trials/{row.name}/privacy_records.json").read_text())
        attacks = {r["attack"] for r in records}
        assert attacks == {"baseline", "inverting_gradients", "adaptive_modules"}
        assert {r["round"] for r in records} == {0, 1}
        means = [
            sum(r["mse"] for r in group) / len(group)
            for attack in attacks - {"baseline"}
            for number in (0, 1)
            if (group := [r for r in records if r["attack"] == attack and r["round"] == number])
        ]
        assert row.metrics["privacy/mse"] == pytest.approx(min(means))


def test_victims_are_the_same_for_every_defence(swept: tuple[SweepOutcome, str, Path]) -> None:
    _, _, folder = swept
    victims = {
        tuple(
            (r["victim"], r["client"], r["label"], round(r["baseline_mse"], 7))
            for r in json.loads(path.read_text())
            if r["attack"] == "baseline" and r["round"] == 0
        )
        for path in folder.glob("runs/tiny/trials/*/privacy_records.json")
    }
    assert len(victims) == 1


def test_pictures_and_the_pareto_figure_are_drawn(swept: tuple[SweepOutcome, str, Path]) -> None:
    outcome, _, folder = swept
    assert [path.name for path in outcome.files] == ["pareto.png", "comparison.png"]
    assert outcome.files[0].stat().st_size > 5000
    assert len(list(folder.glob("runs/tiny/trials/*/reconstruction.png"))) == 4


def run_here(raw: dict[str, Any], executor: Any, name: str) -> tuple[dict[str, float], checkpoint.Progress]:
    experiment = check(raw)
    files = ExperimentPaths.of(experiment)
    tracking = replace(tracking_settings(experiment, files, published=True, deliver=False), experiment=name)
    seen: list[checkpoint.Progress] = []
    files = replace(files, root=files.root.with_name(name))
    with TrialTracker(tracking, parent_run_id=None, name=name, params=params_of(experiment)) as tracker:
        final = Trial(experiment, executor, files.trial("t"), lambda text: None).run(
            tracker, on_round=lambda progress, metrics: seen.append(progress)
        )
    return final, seen[-1]


def test_serial_and_ray_give_the_same_bits(bars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    raw = tiny_experiment(bars, defense=TINY_LATENT, model={"name": "resnet20", "width": 4, "norm": "batch"})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        serial, alone = run_here(raw, SerialExecutor(), "serial")
    finally:
        torch.set_num_threads(threads)
    with RayExecutor(2, cpus_per_worker=0.5) as pool:
        ray_final, together = run_here(raw, pool, "ray")
    assert alone.state.weights.keys() == together.state.weights.keys()
    for name, weights in alone.state.weights.items():
        assert torch.equal(weights, together.state.weights[name]), name
    for name in ("utility/accuracy", "utility/auc", "fl/loss", "privacy/mse"):
        assert serial.get(name) == ray_final.get(name)


def test_a_trial_resumes_from_its_checkpoint_to_the_same_end(
    bars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = check(tiny_experiment(bars, fl={"rounds": 3}))
    files = ExperimentPaths.of(experiment)
    tracking = tracking_settings(experiment, files, published=True, deliver=False)
    kept: list[checkpoint.Progress] = []

    def run(resumed: checkpoint.Progress | None) -> dict[str, float]:
        with TrialTracker(tracking, parent_run_id=None, name="t", params={}) as tracker:
            trial = Trial(experiment, SerialExecutor(), files.trial("t"), lambda text: None)
            return trial.run(tracker, resumed=resumed, on_round=lambda progress, metrics: kept.append(progress))

    whole = run(None)
    checkpoint.save(kept[0], tmp_path)
    again = run(checkpoint.load(tmp_path))
    same = {key: value for key, value in whole.items() if not key.startswith("cost/")}
    assert same == {key: again[key] for key in same}


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "tune_configs").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_shipped_sweep_runs(path: Path, bars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's first control, and its learnt defence at a corner of its space, cut down to a tiny data set."""
    monkeypatch.chdir(tmp_path)
    raw = yaml.safe_load(path.read_text())
    check({**raw, "data": {**raw["data"], "name": f"npz:{bars}"}})
    tiny = tiny_experiment(bars)
    smaller = {key: tiny["audit"][key] for key in ("victims", "inversion", "inverse")}
    cut = {
        **{key: value for key, value in raw.items() if key != "search"},
        "data": {**raw["data"], "name": f"npz:{bars}", "size": None, "limit": None},
        "model": {**raw["model"], "width": 4},
        "fl": {**raw["fl"], "clients": 3, "rounds": 2, "local_epochs": 1, "batch_size": 8},
        "audit": {**raw["audit"], "clients": 2, **smaller},
        "resources": tiny["resources"],
    }
    learnt = {"defense": {**raw.get("defense", {}), **TINY_LATENT}}
    corner = next(iter(corners(raw["search"].get("space", {}))), {})
    for overrides in (raw["search"]["panel"][0], {**learnt, **corner}):
        final, _ = run_here(with_overrides(cut, overrides), SerialExecutor(), trial_name(overrides))
        assert math.isfinite(final["utility/accuracy"])
        assert final["privacy/complete"] == 1


def test_the_command_line_writes_json_and_fails_with_a_failed_trial(
    bars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    search = {"panel": [{"fl.learning_rate": 0.1}, {"fl.learning_rate": 1e30}]}
    Path("e.yaml").write_text(yaml.safe_dump(tiny_experiment(bars, search=search)))
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


def test_asha_stops_a_trial_early(bars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
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
    outcome, _ = sweep(raw)
    assert sorted(row.status for row in outcome.rows) == ["FINISHED", "KILLED"]
    (stopped,) = [row for row in outcome.rows if row.status == "KILLED"]
    assert stopped.params == {**stopped.params, "defense.name": "none"}
    assert "learning_rate=1e-06" in stopped.name
    recorded = {row.name: row.status for row in rows_from_mlflow(f"sqlite:///{tmp_path / 'mlflow.db'}", "tiny")}
    assert recorded == {row.name: row.status for row in outcome.rows}


def test_a_sweep_without_a_search_is_refused(bars: Path) -> None:
    raw = tiny_experiment(bars)
    with pytest.raises(FedveilError, match="no 'search' section"):
        run_sweep(check(raw), raw, Console(file=io.StringIO()))
