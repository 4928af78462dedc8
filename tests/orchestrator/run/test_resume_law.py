"""A trial that is stopped at any moment, as often as you like, and resumed each time ends like one that never was."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY_LATENT, tiny_experiment, write_bars

from fedveil.fl.executor import SerialExecutor
from fedveil.fl.rounds import RoundReport
from fedveil.orchestrator.config import Experiment, check
from fedveil.orchestrator.run import checkpoint
from fedveil.orchestrator.run.callbacks import TrialCallback, TrialResult
from fedveil.orchestrator.run.checkpoint import Progress, Saved
from fedveil.orchestrator.run.setup import Setup, make_setup
from fedveil.orchestrator.run.trial import Trial

pytestmark = pytest.mark.slow


class Keeping(TrialCallback):
    """Leaves a checkpoint after each round, as a sweep's trial does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_round(self, progress: Progress, report: RoundReport, running: Mapping[str, float]) -> None:
        checkpoint.save(Saved(progress=progress), self._folder)


class Stopping(TrialCallback):
    """Stops the trial when it has been told so many things; each is a moment in the defence's preparation, an audit, a
    round, or between them."""

    def __init__(self, after: float) -> None:
        self.told = 0
        self._after = after

    def _tell(self, *_: Any) -> None:
        self.told += 1
        if self.told > self._after:
            raise KeyboardInterrupt

    on_begin = on_end = on_prepared = on_audit = on_round = _tell


@dataclass(frozen=True)
class Whole:
    """An experiment, and how it ends without a stop."""

    experiment: Experiment
    setup: Setup
    result: TrialResult
    moments: int
    modules: Path

    def attempt(self, folder: Path, stopping: Stopping) -> TrialResult | None:
        saved = checkpoint.load(folder)
        callbacks = [Keeping(folder), stopping]
        try:
            trial = Trial(self.experiment, self.setup, SerialExecutor(), cache=self.modules, callbacks=callbacks)
            return trial.run(saved.progress if saved else None)
        except KeyboardInterrupt:
            return None


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, modules: Path) -> Whole:
    bars = write_bars(tmp_path_factory.mktemp("data") / "bars.npz", train=60)
    raw = tiny_experiment(bars, fl={"rounds": 3, "strategy": "fedadam"}, defense=TINY_LATENT, audit={"observations": 2})
    experiment = check(raw)
    setup, never = make_setup(experiment), Stopping(float("inf"))
    result = Trial(experiment, setup, SerialExecutor(), callbacks=[never]).run()  # learns all by itself
    return Whole(experiment, setup, result, never.told, modules)


@given(data=st.data())
@settings(max_examples=2)
def test_a_trial_stopped_at_any_moments_and_resumed_ends_in_the_same_bits(whole: Whole, data: st.DataObject) -> None:
    stop_and_resume(whole, data.draw(st.lists(st.integers(0, whole.moments - 1), min_size=1, max_size=3)))


@pytest.mark.long
def test_a_trial_stopped_at_each_moment_and_resumed_ends_in_the_same_bits(whole: Whole) -> None:
    for moment in range(whole.moments):
        stop_and_resume(whole, [moment])


def stop_and_resume(whole: Whole, stops: Sequence[int]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ends = [whole.attempt(folder, Stopping(after)) for after in stops]
        assert ends[0] is None
        result = next((end for end in ends if end is not None), None) or whole.attempt(folder, Stopping(float("inf")))
    assert result is not None
    assert result.metrics == whole.result.metrics
    ours, theirs = result.progress, whole.result.progress
    assert ours.records == theirs.records
    for mine, other in ((ours.state.weights, theirs.state.weights), (ours.state.optimizer, theirs.state.optimizer)):
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[key], other[key]) for key in mine)
