from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from rich.console import Console
from tiny import PLUGIN, TINY_LATENT, TINY_MODEL_INVERSIONS, share_cache, tiny_experiment, write_bars

from fedveil.fl.executor import Executor, SerialExecutor
from fedveil.fl.rounds import RoundReport
from fedveil.orchestrator import cli
from fedveil.orchestrator.cluster.executor import RayExecutor
from fedveil.orchestrator.config import check, with_overrides
from fedveil.orchestrator.config.space import corners
from fedveil.orchestrator.config.yaml import dump, parse
from fedveil.orchestrator.report.recorded import rows_from_mlflow
from fedveil.orchestrator.run import api, checkpoint
from fedveil.orchestrator.run import sweep as sweep_module
from fedveil.orchestrator.run.callbacks import TrialCallback, TrialResult
from fedveil.orchestrator.run.checkpoint import Progress, Saved
from fedveil.orchestrator.run.results import SweepResult
from fedveil.orchestrator.run.setup import make_setup
from fedveil.orchestrator.run.trainable import rows_of
from fedveil.orchestrator.run.trial import Trial

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.slow]

CONTROLS = [{"defense": "none"}, {"defense": {"name": "pixel_noise", "strength": 0.3}}]
OWN = {"defense": {"name": "darken", "strength": 0.25}, "audit.victims": 2}


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bars(tmp_path_factory.mktemp("data") / "bars.npz")


Swept = tuple[SweepResult, str, Path]


@pytest.fixture(scope="module")
def swept(bars: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """A panel, a two-objective Optuna search, a trial that fails (no FedAvg at 1e30), a user's defence and attack."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("sweep")
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        shutil.copy(bars, folder / "here.npz")
        (folder / "mine.py").write_text(PLUGIN)
        raw = tiny_experiment(
            Path("here.npz"),
            defense=TINY_LATENT,
            search={
                "panel": [*CONTROLS, {"defense": "none", "fl.learning_rate": 1e30}, OWN],
                "space": {"defense.strength": {"loguniform": [0.5, 2.0]}},
                "samples": 2,
                "searcher": "optuna",
            },
        )
        raw["audit"]["attacks"].append({"name": "grey", "level": 0.25})
        screen = io.StringIO()
        result = api.sweep(raw, plugins=["./mine.py"], console=Console(file=screen, width=200))
    return result, screen.getvalue(), folder


def test_a_sweep_runs_panel_and_search_and_names_its_trials(swept: Swept) -> None:
    outcome, screen, _ = swept
    rows = {row.name: row for row in outcome.rows}
    assert len(rows) == 6
    assert {"none", "pixel_noise_strength=0.3", "none_learning_rate=1e+30", "darken_strength=0.25_victims=2"} < set(
        rows
    )
    assert sum(row.defense == "latent_autoencoder" for row in rows.values()) == 2
    assert all(
        row.dial is not None and 0.5 <= row.dial <= 2 for row in rows.values() if row.defense == "latent_autoencoder"
    )
    for words in ("preparing", "audit of round 0", "round 2/2", "done: accuracy"):
        assert words in screen
    finished = [row for row in rows.values() if row.finished]
    assert len(finished) == 5
    for row in finished:
        assert {"utility/accuracy", "utility/auc", "utility/clean_accuracy", "privacy/mse"} < set(row.metrics)
        assert all(math.isfinite(value) for value in row.metrics.values())


def test_the_record_has_a_parent_and_children_with_status_names_and_artifacts(
    swept: Swept,
) -> None:
    _, _, folder = swept
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["sweep/trials"] == 6
    assert parent.data.metrics["sweep/failed"] == 1
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in children.values())
    broken = children.pop("none_learning_rate=1e+30")
    assert broken.info.status == "FAILED"
    assert "is not finite" in broken.data.tags["error"]
    assert "lower fl.learning_rate" in broken.data.tags["error"]
    assert len(children) == 5
    for run in children.values():
        assert run.info.status == "FINISHED"
        assert run.data.params["data.name"] == "npz:here.npz"
        assert [m.step for m in client.get_metric_history(run.info.run_id, "fl/accuracy")] == [0, 1]
        assert len(client.get_metric_history(run.info.run_id, "privacy/mse")) == 1
        names = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert {"experiment.yaml", "privacy_records.json", "images"} <= names
        if run.data.params["defense.name"] == "latent_autoencoder":
            assert run.data.metrics["swept/defense.strength"] == float(run.data.params["defense.strength"])


def test_headline_is_the_worst_case_over_attacks_and_rounds(swept: Swept) -> None:
    result, _, _ = swept
    for row in result.rows:
        if not row.finished:
            continue
        records = result.records[row.name]
        attacks = {r.attack for r in records}
        assert attacks == {"baseline", "inverting_gradients", "adaptive_modules", "grey"}
        assert {r.round for r in records} == {0, 1}
        means = [
            sum(r.mse for r in group) / len(group)
            for attack in attacks - {"baseline"}
            for number in (0, 1)
            if (group := [r for r in records if r.attack == attack and r.round == number])
        ]
        assert row.metrics["privacy/mse"] == pytest.approx(min(means))


def test_a_users_own_defence_and_attack_work_in_trials_and_workers(swept: Swept) -> None:
    result, _, _ = swept
    records = result.records["darken_strength=0.25_victims=2"]
    # What the client trained on is a quarter of the original: the error is 9/16 of its mean square.
    darkened = {r.victim: r.trained_mse for r in records}
    undefended = {r.victim: r for r in result.records["none"] if r.attack == "grey" and r.round == 0}
    assert darkened.keys() == {0, 1}
    for record in records:
        if record.attack == "grey":
            # (x - 1/4)^2 = x^2 - x/2 + 1/16, whatever the defence.
            assert record.mse == pytest.approx(undefended[record.victim].mse)
        assert record.trained_mse is not None
        assert 0.01 < record.trained_mse < 9 / 16


def test_victims_are_the_same_for_every_defence(swept: Swept) -> None:
    result, _, _ = swept
    victims = {
        tuple(
            (r.victim, r.client, r.label, round(r.baseline_mse or 0.0, 7))
            for r in records
            if r.attack == "baseline" and r.round == 0
        )
        for name, records in result.records.items()
        if "victims=2" not in name
    }
    assert len(victims) == 1


def test_pictures_and_the_pareto_figure_are_drawn(swept: Swept) -> None:
    outcome, _, folder = swept
    assert [path.name for path in outcome.files] == ["pareto.png", "comparison.png"]
    assert outcome.files[0].stat().st_size > 5000
    assert len(list(folder.glob("runs/tiny/trials/*/reconstruction.png"))) == 5


def test_no_other_user_reads_what_a_sweep_leaves(swept: Swept) -> None:
    """Neither what Tune writes of settings and searchers, nor the folder around it."""
    _, _, folder = swept
    left = [folder / "runs", *(folder / "runs").rglob("*")]
    assert {"tuner.pkl", "trial.pt"} <= {path.name for path in left}
    assert [path for path in left if path.stat().st_mode & 0o077] == []


class Kept(TrialCallback):
    """Keeps what a checkpoint after each round would hold."""

    def __init__(self) -> None:
        self.progress: list[Progress] = []
        self.running: list[Mapping[str, float]] = []

    def on_round(self, progress: Progress, report: RoundReport, running: Mapping[str, float]) -> None:
        self.progress.append(progress)
        self.running.append(running)


def run_trial(
    raw: dict[str, Any], executor: Executor, resumed: Progress | None = None, *, cache: Path | None = None
) -> tuple[TrialResult, Kept]:
    experiment, kept = check(raw), Kept()
    result = Trial(experiment, make_setup(experiment), executor, cache=cache, callbacks=[kept]).run(resumed)
    return result, kept


def same_weights(one: Progress, other: Progress) -> bool:
    ours, theirs = one.state.weights, other.state.weights
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many as a worker slot has, since sums depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_serial_and_ray_give_the_same_bits(bars: Path, one_thread: None) -> None:
    raw = tiny_experiment(bars, defense=TINY_LATENT, model={"name": "resnet20", "width": 4, "norm": "batch"})
    serial, alone = run_trial(raw, SerialExecutor())
    with RayExecutor(2, cpus_per_worker=0.5) as pool:
        ray_result, together = run_trial(raw, pool)
    assert same_weights(alone.progress[-1], together.progress[-1])
    assert alone.running == together.running
    for name in ("utility/accuracy", "utility/auc", "privacy/mse"):
        assert serial.metrics[name] == ray_result.metrics[name]


def test_a_trial_resumes_from_its_checkpoint_to_the_same_end(bars: Path, tmp_path: Path, modules: Path) -> None:
    raw = tiny_experiment(bars, fl={"rounds": 3})
    whole, kept = run_trial(raw, SerialExecutor(), cache=modules)
    checkpoint.save(Saved(progress=kept.progress[0]), tmp_path)
    saved = checkpoint.load(tmp_path)
    assert saved is not None
    again, _ = run_trial(raw, SerialExecutor(), saved.progress, cache=modules)
    assert same_weights(whole.progress, again.progress)
    assert whole.progress.records == again.progress.records
    assert whole.metrics == again.metrics


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[3] / "tune_configs").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_shipped_sweep_runs(path: Path, bars: Path, modules: Path) -> None:
    """The file's first control, and its learnt defence at a corner of its space, cut down to a tiny data set."""
    raw = parse(path.read_text())
    check({**raw, "data": {**raw["data"], "name": f"npz:{bars}"}})
    tiny = tiny_experiment(bars)
    plain, adaptive = tiny["audit"]["attacks"]
    smaller = {"victims": 2, "chunks": 1, "attacks": [plain, {**adaptive, "calibration": 0}]}
    if raw["audit"].get("model_inversion"):
        smaller["model_inversion"] = TINY_MODEL_INVERSIONS
    classes = {"private_classes": [0, 1]} if "private_classes" in raw["data"] else {}
    length = {"local_steps": 2} if "local_steps" in raw["fl"] else {"local_epochs": 1}
    cut = {
        **{key: value for key, value in raw.items() if key != "search"},
        "data": {**raw["data"], **tiny["data"], "size": None, "limit": None, **classes},
        "model": {**raw["model"], "width": 4},
        "fl": {**raw["fl"], "clients": 3, "rounds": 2, "batch_size": 8, **length},
        "audit": {**raw["audit"], "clients": 2, **smaller},
        "references": tiny["references"],
        "resources": tiny["resources"],
    }
    learnt = {"defense": {**raw.get("defense", {}), **TINY_LATENT}}
    corner = next(iter(corners(raw["search"].get("space", {}))), {})
    for overrides in (raw["search"]["panel"][0], {**learnt, **corner}):
        result, _ = run_trial(with_overrides(cut, overrides), SerialExecutor(), cache=modules)
        assert math.isfinite(result.metrics["utility/accuracy"])
        assert result.metrics["privacy/complete"] == 1


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
