"""A run that was killed goes on: in its own MLflow runs, and to the numbers of one that never was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from dying import killed, run
from mlflow import MlflowClient
from resuming import numbers
from tiny import TINY_INVERSION, share_cache, tiny_experiment, write_bars

from fedveil.fl.errors import FedveilError
from fedveil.orchestrator.config import check, with_overrides
from fedveil.orchestrator.report.recorded import rows_from_mlflow
from fedveil.orchestrator.run import checkpoint
from fedveil.orchestrator.run.alone import only_run
from fedveil.orchestrator.run.checkpoint import Saved, load
from fedveil.orchestrator.run.memory import RunMemory, began, runs, settings_to_keep
from fedveil.orchestrator.run.paths import ExperimentPaths
from fedveil.orchestrator.run.setup import make_setup
from fedveil.orchestrator.run.single import _to_resume


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Three rounds under each of two seeds; the first and the last are audited."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tiny_experiment(
        write_bars(tmp_path / "bars.npz"),
        fl={"rounds": 3, "strategy": "fedadam"},
        audit={"attacks": [TINY_INVERSION], "victims": 2},
        seeds=[3, 1],
    )


def runs_of(folder: Path) -> dict[str, tuple[str, str, list[tuple[int, float]]]]:
    """Return each MLflow run's id, status and curve, by its name."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'tiny'")
    found = client.search_runs([experiment.experiment_id])
    assert len({one.info.run_name for one in found}) == len(found)
    return {
        one.info.run_name: (
            one.info.run_id,
            one.info.status,
            [(point.step, point.value) for point in client.get_metric_history(one.info.run_id, "fl/accuracy")],
        )
        for one in found
    }


@pytest.mark.slow
def test_a_run_killed_after_a_round_and_in_an_audit_ends_like_one_that_never_was(
    raw: dict[str, Any], tmp_path: Path, modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = {**raw, "seeds": [3]}
    for name in ("once", "killed"):
        share_cache(tmp_path / name, modules)
    monkeypatch.chdir(tmp_path / "once")
    undisturbed, _ = run(raw)

    folder = tmp_path / "killed"
    monkeypatch.chdir(folder)
    killed(raw, folder, "ROUND", 1)
    before = runs(ExperimentPaths(folder / "runs/tiny")).recall()
    assert before.trials == ["none-seed3"]
    killed(raw, folder, "AUDIT", 2, resume=True)
    kept = sorted((folder / "runs/tiny/checkpoints" / before.storage).glob("checkpoint_*"))
    progress = [saved.progress for saved in map(load, kept) if saved is not None]
    assert [one.state.round for one in progress if one is not None] == [1, 2]  # nothing was trained twice

    resumed, said = run(raw, resume=True)
    assert "nothing to resume" not in said
    assert numbers(resumed) == numbers(undisturbed)
    assert resumed.records == undisturbed.records
    ours, theirs = runs_of(folder), runs_of(tmp_path / "once")
    assert {name: (status, curve) for name, (_, status, curve) in ours.items()} == {
        name: (status, curve) for name, (_, status, curve) in theirs.items()
    }
    assert {(status, len(curve)) for _, status, curve in ours.values()} == {("FINISHED", 3)}
    recorded = rows_from_mlflow(f"sqlite:///{folder / 'mlflow.db'}", "tiny")
    assert {row.name: row.error for row in recorded} == {"none-seed3": None}

    again, said = run(raw, resume=True)
    assert f"this run has finished: there is nothing to resume in {folder}/runs/tiny/run.json" in said
    assert (again.rows, again.records) == (resumed.rows, resumed.records)
    assert runs_of(folder) == ours


def test_nothing_to_resume(raw: dict[str, Any], tmp_path: Path) -> None:
    said = r"--resume: there is nothing to resume, no .*runs/tiny/run\.json; start the run without --resume"
    with pytest.raises(FedveilError, match=said):
        run(raw, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["bars.npz"]


def test_an_interrupted_run_is_resumed_with_its_own_settings_alone_and_by_one_process(
    raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fedveil.orchestrator.run.setting.Trial.run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(raw)
    paths = ExperimentPaths(Path("runs/tiny").absolute())
    said = r"--resume: the settings are not those of the run in .*run\.json: fl\.learning_rate; set them back"
    with pytest.raises(FedveilError, match=said):
        run({**raw, "fl": {**raw["fl"], "learning_rate": 0.2}}, resume=True)
    storage = paths.checkpoints / runs(paths).recall().storage
    with only_run(storage), pytest.raises(FedveilError, match="was not interrupted, it runs: wait for its end"):
        run(raw, resume=True)


def test_a_seed_that_failed_is_run_again_and_the_ones_before_are_not(
    raw: dict[str, Any], tmp_path: Path, modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise FedveilError("no images today")

    share_cache(tmp_path, modules)
    raw["fl"]["rounds"] = 1
    with monkeypatch.context() as patch:
        patch.setattr("fedveil.orchestrator.run.single.make_setup", fail)
        with pytest.raises(FedveilError, match="no images today"):
            run(raw)
    made = []
    monkeypatch.setattr(
        "fedveil.orchestrator.run.single.make_setup", lambda one: made.append(one.seed) or make_setup(one)
    )
    first = json.loads((tmp_path / "runs/tiny/trials/none-seed3/metrics.json").read_text())
    resumed, _ = run(raw, resume=True)
    assert made == [1]
    assert resumed.rows[0].metrics == first  # its costs, too: it was not run again
    assert [one.status for one in resumed.rows] == ["FINISHED", "FINISHED"]
    assert [one[1] for one in runs_of(tmp_path).values()] == ["FINISHED", "FINISHED"]
    (storage,) = (tmp_path / "runs/tiny/checkpoints").iterdir()
    assert len(list(storage.glob("checkpoint_*"))) == 1  # the images and weights of what has finished are gone


def test_of_runs_that_went_on_side_by_side_each_is_resumed(raw: dict[str, Any]) -> None:
    """The first of two was out of reach once the second had begun."""
    raw["seeds"] = [3]
    experiment, paths = check(raw), ExperimentPaths(Path("runs/tiny").absolute())
    given_up, first, second = (f"20260102-00000{second}-x" for second in (1, 2, 3))
    for name, at in ((given_up, -1), (first, 60), (second, 60)):
        runs(paths).keep(RunMemory(name, settings_to_keep(experiment), ["none-seed3"]))
        checkpoint.save_next(Saved(), paths.checkpoints / name, last=2)
        (saved,) = (paths.checkpoints / name).glob(f"{checkpoint.FOLDER}*")
        stamp = began(second) + at
        os.utime(saved, (stamp, stamp))

    def resumed() -> str:
        return _to_resume(experiment, paths).storage

    def finish(name: str) -> None:
        checkpoint.save_next(Saved(finished=({"utility/accuracy": 0.9},)), paths.checkpoints / name, last=1)

    assert resumed() == second
    finish(second)
    assert resumed() == first
    with only_run(paths.checkpoints / first):  # not interrupted, it runs
        assert resumed() == second
    finish(first)
    # What had stopped before the last one began was given up for it; the last one will say that it has finished.
    assert resumed() == second
    # One with other settings that began beside it hides it no more.
    changed = with_overrides(raw, {"fl.learning_rate": 0.2})
    checkpoint.save_next(Saved(), paths.checkpoints / "20260102-000004-x", last=2)
    runs(paths).keep(RunMemory("20260102-000004-x", settings_to_keep(check(changed)), ["none-seed3-2"]))
    with pytest.raises(FedveilError, match=r"the settings are not those of the run in .*: fl\.learning_rate"):
        resumed()
    checkpoint.save_next(Saved(), paths.checkpoints / first, last=1)
    assert resumed() == first
