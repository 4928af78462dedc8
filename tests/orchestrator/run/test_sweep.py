"""A sweep of a panel and a search, and all that it leaves: trials, record, worst cases, pictures."""

from __future__ import annotations

import io
import math
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from rich.console import Console
from tiny import PLUGIN, TINY_LATENT, tiny_experiment

from fedveil.orchestrator.run import api
from fedveil.orchestrator.run.results import SweepResult

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.slow]

CONTROLS = [{"defense": "none"}, {"defense": {"name": "pixel_noise", "strength": 0.3}}]
OWN = {"defense": {"name": "darken", "strength": 0.25}, "audit.victims": 2}
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
