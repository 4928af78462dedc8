from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fedveil.defense.latent import pool
from fedveil.fl.executor import SerialExecutor
from fedveil.fl.rounds import RoundReport
from fedveil.orchestrator.config import check
from fedveil.orchestrator.run.callbacks import TrialCallback, TrialResult
from fedveil.orchestrator.run.checkpoint import Progress
from fedveil.orchestrator.run.setup import make_setup
from fedveil.orchestrator.run.trial import Trial
from tests.tiny import tiny_experiment, write_bars

LATENT = {"name": "latent", "k": 3, "steps": 2, "random_networks": 1, "trained_networks": 1}


class Kept(TrialCallback):
    def __init__(self) -> None:
        self.progress: list[Progress] = []

    def on_round(self, progress: Progress, report: RoundReport, running: Mapping[str, float]) -> None:
        self.progress.append(progress)


@pytest.fixture(scope="module")
def cache(modules: Path) -> Path:
    """The judge is trained once."""
    return modules


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "LONGEST", 2)


def run(
    cache: Path, defense: dict[str, Any], *, resumed: Progress | None = None, **audit: Any
) -> tuple[TrialResult, list[Progress]]:
    raw = tiny_experiment(
        write_bars(cache / "bars.npz"),
        defense=defense,
        audit={"rounds": [0], "attacks": ["baseline"], **audit},
        references={"measure": False},
    )
    experiment, kept = check(raw), Kept()
    return Trial(experiment, make_setup(experiment), SerialExecutor(), cache=cache, callbacks=[kept]).run(
        resumed
    ), kept.progress


def test_undefended_images_are_always_told_and_nothing_is_measured_unasked(cache: Path) -> None:
    found = run(cache, {"name": "none"}, membership=True)[0].metrics
    assert {found[f"privacy/membership_auc{end}"] for end in ("", "_low", "_high")} == {1.0}
    assert found["privacy/membership_tpr"] == 1
    assert not any("membership" in name for name in run(cache, {"name": "none"})[0].metrics)


def test_images_that_are_greyed_are_told_less_well(cache: Path) -> None:
    found = run(cache, {"name": "block_average", "size": 16}, membership=True)[0].metrics
    low, auc, high = (found[f"privacy/membership_auc{end}"] for end in ("_low", "", "_high"))
    assert auc < 0.95
    assert low <= auc <= high


def test_whoever_shares_is_told_the_same_each_time(cache: Path) -> None:
    first, again = (run(cache, {"name": "group_mean", "k": 4}, membership=True)[0].metrics for _ in range(2))
    # Images of white noise: the mean of a few shows whose it is.
    assert 0.5 < first["privacy/membership_auc"] <= 1
    names = [name for name in first if "membership" in name]
    assert len(names) == 6
    assert {name: first[name] for name in names} == {name: again[name] for name in names}


def test_a_resumed_trial_trains_on_the_same_shared_images(cache: Path) -> None:
    whole, progress = run(cache, LATENT)
    resumed, _ = run(cache, LATENT, resumed=progress[0])
    one, other = whole.progress.state.weights, resumed.progress.state.weights
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert whole.metrics["privacy/k"] >= 3
