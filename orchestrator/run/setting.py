"""One setting under each of its seeds in turn, from its last checkpoint on: a run, or one of a sweep's trials."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedveil.fl.rounds import RoundReport
from fedveil.orchestrator.cluster.executor import RayExecutor
from fedveil.orchestrator.cluster.progress import Say, Speaker, under_way
from fedveil.orchestrator.config import Experiment
from fedveil.orchestrator.run import checkpoint
from fedveil.orchestrator.run.callbacks import Costs, Speech, TrialCallback
from fedveil.orchestrator.run.checkpoint import Progress, Saved
from fedveil.orchestrator.run.failures import logged
from fedveil.orchestrator.run.names import params_of, run_token, single_values
from fedveil.orchestrator.run.paths import ExperimentPaths
from fedveil.orchestrator.run.recording import Files, Tracking
from fedveil.orchestrator.run.setup import Setup, make_setup
from fedveil.orchestrator.run.tags import tags_of
from fedveil.orchestrator.run.trial import Trial
from fedveil.orchestrator.tracking import TrackingSettings, TrialTracker
from fedveil.orchestrator.tracking.spool import PENDING

Keep = Callable[[Saved, Mapping[str, float] | None], None]
"""Is given what has to be kept, and what is known of the seed that runs; None between two seeds."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all seeds of one setting share.

    Attributes:
        seeds: the experiment, once for each.
        trials: names of its trials, in the same order.
        token: what tells it from all others; see `run_token`. By it a trial that ended before its first checkpoint finds its
            MLflow run again.
        paths: where to write.
        tracking: where to record.
        board: for progress.
        keep: after each round and after each seed.
        executor: makes, or finds, where a seed runs.
        setup: makes a seed's images.
        parent_run_id: of the sweep's MLflow run.
        overrides: what the sweep varies, dotted keys to values.
    """

    seeds: Sequence[Experiment]
    trials: Sequence[str]
    token: tuple[str, str]
    paths: ExperimentPaths
    tracking: TrackingSettings
    board: Any
    keep: Keep
    executor: Callable[[Experiment], RayExecutor]
    setup: Callable[[Experiment], Setup] = make_setup
    parent_run_id: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def run(self, saved: Saved) -> Saved:
        """Run to the end from ``saved`` on; the end is the same, bit for bit, wherever it was stopped.

        Raises:
            FedveilError: a seed's trial failed, with the sentence that says why.
        """
        for number in range(len(saved.finished), len(self.seeds)):
            name = self.trials[number]
            with under_way(self.board, name), logged(self.paths.trial(name).folder):
                metrics = self._run_seed(number, saved)
            saved = Saved(finished=(*saved.finished, metrics))
            self.keep(saved, None)
        return saved

    def _run_seed(self, number: int, saved: Saved) -> Mapping[str, float]:
        experiment, name = self.seeds[number], self.trials[number]
        paths, setup = self.paths.trial(name), self.setup(experiment)
        costs = Costs(experiment.fl.rounds, saved.costs)
        plain = single_values(self.overrides)
        with TrialTracker(
            self.tracking,
            parent_run_id=self.parent_run_id,
            name=name,
            params={**params_of(experiment), **plain},
            swept=list(plain),
            tags=tags_of(experiment),
            run_id=saved.run_id or PENDING + run_token(*self.token, experiment.seed),
        ) as tracker:
            say = Speaker(self.board, name)
            callbacks = [
                costs,
                Speech(say, experiment, setup),
                Files(paths, experiment, setup),
                Tracking(tracker, paths, experiment),
                _Checkpoints(self.keep, saved.finished, tracker, costs),
            ]
            executor = self.executor(experiment)
            executor.say, executor.trial = say, name
            trial = Trial(experiment, setup, executor, cache=paths.cache, callbacks=callbacks)
            return trial.run(saved.progress).metrics


class _Checkpoints(TrialCallback):
    """Has each round kept.

    Args:
        keep: see `Setting`.
        finished: final metrics of the seeds before this one.
        tracker: of this one.
        costs: of this one.
    """

    def __init__(
        self, keep: Keep, finished: tuple[Mapping[str, float], ...], tracker: TrialTracker, costs: Costs
    ) -> None:
        self._keep = keep
        self._finished = finished
        self._tracker = tracker
        self._costs = costs

    def on_round(self, progress: Progress, report: RoundReport, running: Mapping[str, float]) -> None:
        """Have it kept."""
        self._keep(Saved(self._finished, progress, self._tracker.run_id, self._costs.spent), running)


def newest(checkpoints: Sequence[Path], say: Say) -> Saved:
    """Return what the checkpoint that is farthest on holds; the beginning where there is none.

    Of a sweep, Tune's own word is not asked for: what it knows may be older than what is there, or damaged.

    Args:
        checkpoints: of one setting, the oldest first.
        say: is told where the last is damaged.
    """
    read = [(checkpoint.load(one), one) for one in checkpoints]
    whole = [(saved, one.name) for saved, one in read if saved is not None]
    if not whole:
        if read:
            say(f"note: {read[-1][1]} is damaged, and there is none before it: the trial begins anew")
        return Saved()
    best, chosen = max(reversed(whole), key=lambda pair: _far(pair[0]))  # of equals the latest
    if read[-1][0] is None:
        say(f"note: {read[-1][1]} is damaged: the trial goes on from {chosen}")
    return best


def _far(saved: Saved) -> tuple[int, int]:
    return len(saved.finished), -1 if saved.progress is None else saved.progress.state.round
