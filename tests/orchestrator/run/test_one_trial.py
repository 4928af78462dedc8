"""One trial: the same bits on any executor and after a stop, and every shipped sweep's, cut down."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TINY_LATENT, TINY_MODEL_INVERSIONS, tiny_experiment

from fedveil.fl.executor import Executor, SerialExecutor
from fedveil.fl.rounds import RoundReport
from fedveil.orchestrator.cluster.executor import RayExecutor
from fedveil.orchestrator.config import check, with_overrides
from fedveil.orchestrator.config.space import corners
from fedveil.orchestrator.config.yaml import parse
from fedveil.orchestrator.run import checkpoint
from fedveil.orchestrator.run.callbacks import TrialCallback, TrialResult
from fedveil.orchestrator.run.checkpoint import Progress, Saved
from fedveil.orchestrator.run.setup import make_setup
from fedveil.orchestrator.run.trial import Trial

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.slow]


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
    raw = tiny_experiment(bars, defense=TINY_LATENT, model={"width": 4, "norm": "batch"})
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
    "path",
    [
        pytest.param(path, marks=[pytest.mark.long] if path.stem == "cifar10-minimax" else [])  # a deep network
        for path in sorted((Path(__file__).parents[3] / "tune_configs").glob("*.yaml"))
    ],
    ids=lambda path: path.stem,
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
