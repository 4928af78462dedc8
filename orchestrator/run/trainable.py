"""A sweep's trial as Ray Tune runs it: one setting, under each of its seeds in turn."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray import tune

from fedveil.fl.rounds import RoundReport
from fedveil.orchestrator.cluster.executor import RayExecutor
from fedveil.orchestrator.cluster.progress import Say, Speaker, ended, enlist
from fedveil.orchestrator.config import Experiment, check, with_overrides
from fedveil.orchestrator.config.plugins import Plugin, install
from fedveil.orchestrator.report import TrialRow
from fedveil.orchestrator.run import checkpoint
from fedveil.orchestrator.run.callbacks import Costs, Speech, TrialCallback
from fedveil.orchestrator.run.checkpoint import Progress, Saved
from fedveil.orchestrator.run.failures import logged, sentence_of
from fedveil.orchestrator.run.names import claimed, earlier_owners, params_of, run_token, single_values
from fedveil.orchestrator.run.paths import ExperimentPaths
from fedveil.orchestrator.run.recording import Files, Tracking
from fedveil.orchestrator.run.seeds import mean_metrics, one_per_seed, seeded_name
from fedveil.orchestrator.run.setup import make_setup
from fedveil.orchestrator.run.tags import tags_of
from fedveil.orchestrator.run.trial import Trial
from fedveil.orchestrator.run.tuning import overrides_of
from fedveil.orchestrator.tracking import TrackingSettings, TrialTracker
from fedveil.orchestrator.tracking.spool import PENDING

RUNNING = "running_seed"
"""In what a trial reports: the metrics of the seed that runs."""
CHECKPOINTS = "checkpoint_"
"""How Tune begins the names of their folders, which are as long as each other."""


@dataclass(frozen=True)
class TrialJob:
    """What every trial of a sweep shares; it travels to the trials, and holds nothing of a plug-in's classes.

    Attributes:
        raw: the experiment file with its overrides, without the search and without passwords.
        plugins: to be installed before ``raw`` is checked.
        objectives: what each report has to hold.
        tracking: where to record.
        parent_run_id: of the sweep's run.
        paths: where to write.
        storage: Tune's, for this sweep alone.
        board: for progress.
        folder: the user's, below which data files are found; Tune gives each trial one of its own.
        workers: worker slots of each trial.
    """

    raw: dict[str, Any]
    plugins: tuple[Plugin, ...]
    objectives: tuple[str, ...]
    tracking: TrackingSettings
    parent_run_id: str | None
    paths: ExperimentPaths
    storage: Path
    board: Any
    folder: Path
    workers: int

    def named(self, config: Mapping[str, Any], part: str, trial_id: str) -> tuple[dict[str, Any], str]:
        """Return what a trial that Tune drew overrides, and its name, which no other trial of the sweep has.

        Args:
            config: Tune's.
            part: of the sweep.
            trial_id: Tune's.
        """
        overrides, name = overrides_of(config)
        return overrides, claimed(self.names, name, f"{part}/{trial_id}")

    @property
    def names(self) -> Path:
        """Which trial has which name."""
        return self.storage / "names"

    def kept(self, name: str, folder: Path) -> list[Path]:
        """Return a trial's checkpoints, the oldest first by their numbers.

        Args:
            name: its own.
            folder: Tune's for it. Those that it had in states of the sweep which are damaged are looked into as well.
        """
        folders = [self.storage / owner for owner in earlier_owners(self.names, name)] + [folder]
        return [one for each in folders for one in sorted(each.glob(f"{CHECKPOINTS}*"))]


class _Reports(TrialCallback):
    """Reports each round to Tune, with a checkpoint.

    Args:
        job: of the sweep.
        finished: final metrics of the seeds before this one.
        tracker: of this one.
        costs: of this one.
    """

    def __init__(
        self, job: TrialJob, finished: tuple[Mapping[str, float], ...], tracker: TrialTracker, costs: Costs
    ) -> None:
        self._job = job
        self._finished = finished
        self._tracker = tracker
        self._costs = costs

    def on_round(self, progress: Progress, report: RoundReport, running: Mapping[str, float]) -> None:
        """Report."""
        _report(self._job, Saved(self._finished, progress, self._tracker.run_id, self._costs.spent), running)


def _report(job: TrialJob, saved: Saved, running: Mapping[str, float] | None = None) -> None:
    """Tell Tune the mean over seeds, and leave it a checkpoint."""
    seeds = [*saved.finished, *([] if running is None else [running])]
    report = {
        # Searchers and schedulers look their objectives up in every report.
        **dict.fromkeys(job.objectives, math.nan),
        **mean_metrics(seeds),
        RUNNING: dict(running or {}),
    }
    with TemporaryDirectory() as folder:
        checkpoint.save(saved, Path(folder))
        tune.report(report, checkpoint=tune.Checkpoint.from_directory(folder))


def run_tuned_trial(config: dict[str, Any], job: TrialJob) -> None:
    """The Tune trainable: one setting, resumed from its checkpoint if it has one."""
    enlist(job.board)
    os.umask(0o077)  # its checkpoints, which Tune copies from here, hold images
    if job.folder.is_dir():
        os.chdir(job.folder)
    install(job.plugins)
    context = tune.get_context()
    part, trial_id = context.get_experiment_name(), context.get_trial_id()
    overrides, name = job.named(config, part, trial_id)
    seeds = one_per_seed(check(with_overrides(job.raw, overrides)))
    saved = newest(job.kept(name, job.storage / part / trial_id), Speaker(job.board, name))
    if len(saved.finished) == len(seeds):
        _report(job, saved)  # Tune does not know it
    for experiment in seeds[len(saved.finished) :]:
        try:
            with logged(job.paths.trial(seeded_name(name, experiment.seed, of=len(seeds))).folder):
                metrics = _run_seed(experiment, overrides, name, saved, job, of=len(seeds))
        finally:
            ended(job.board)
        saved = Saved(finished=(*saved.finished, metrics))
        _report(job, saved)


def newest(checkpoints: Sequence[Path], say: Say) -> Saved:
    """Return what the checkpoint that is farthest on holds; the beginning where there is none.

    Tune's own word is not asked for: what it knows may be older than what is there, or damaged.

    Args:
        checkpoints: of one trial, the oldest first.
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


def _run_seed(
    experiment: Experiment, overrides: Mapping[str, Any], setting: str, saved: Saved, job: TrialJob, *, of: int
) -> Mapping[str, float]:
    name = seeded_name(setting, experiment.seed, of=of)
    paths, setup = job.paths.trial(name), make_setup(experiment)
    costs = Costs(experiment.fl.rounds, saved.costs)
    plain = single_values(overrides)
    # A trial that failed before its first checkpoint finds its run again by a token that it can work out.
    token = run_token(job.storage.name, setting, experiment.seed)
    with TrialTracker(
        job.tracking,
        parent_run_id=job.parent_run_id,
        name=name,
        params={**params_of(experiment), **plain},
        swept=list(plain),
        tags=tags_of(experiment),
        run_id=saved.run_id or PENDING + token,
    ) as tracker:
        say = Speaker(job.board, name)
        callbacks = [
            costs,
            Speech(say, experiment, setup),
            Files(paths, experiment, setup),
            Tracking(tracker, paths, experiment),
            _Reports(job, saved.finished, tracker, costs),
        ]
        slots = _slots(experiment, job)
        slots.say, slots.trial = say, name
        trial = Trial(experiment, setup, slots, cache=paths.cache, callbacks=callbacks)
        return trial.run(saved.progress).metrics


def rows_of(result: Any, job: TrialJob) -> list[TrialRow]:
    """Return a Tune result's rows: one per seed that has begun.

    Args:
        result: of `run_tuned_trial`.
        job: what it was given.
    """
    if result.config is None:  # an interrupted sweep's trial that has not begun
        return []
    folder = Path(result.path)
    overrides, name = job.named(result.config, folder.parent.name, folder.name)
    seeds = one_per_seed(check(with_overrides(job.raw, overrides)))
    reported = result.metrics or {}
    # A checkpoint tells whether it is damaged; what Tune keeps of reports does not.
    finished = newest(job.kept(name, folder), lambda line: None).finished
    rows = []
    for at, experiment in enumerate(seeds[: len(finished) + 1]):
        own_name, params = seeded_name(name, experiment.seed, of=len(seeds)), params_of(experiment)
        if at < len(finished):
            rows.append(TrialRow(own_name, "FINISHED", params, finished[at]))
        elif result.error is not None:
            said = sentence_of(result.error, job.paths.trial(own_name).folder)
            rows.append(TrialRow(own_name, "FAILED", params, {}, said))
        else:  # a scheduler stopped it
            rows.append(TrialRow(own_name, "KILLED", params, reported.get(RUNNING, {})))
    return rows


_pool: tuple[tuple[Any, ...], RayExecutor] | None = None


def _slots(experiment: Experiment, job: TrialJob) -> RayExecutor:
    """Return this process's worker slots; a process that runs several trials keeps them between two."""
    global _pool
    resources = experiment.resources
    shape = (
        job.workers,
        resources.cpus_per_worker,
        resources.gpus_per_worker,
        ray.get_runtime_context().get_placement_group_id(),
    )
    if _pool is not None and _pool[0] != shape:
        _pool[1].close()
        _pool = None
    if _pool is None:
        executor = RayExecutor(
            job.workers,
            cpus_per_worker=resources.cpus_per_worker,
            gpus_per_worker=resources.gpus_per_worker,
            plugins=job.plugins,
            name=experiment.experiment,
        )
        _pool = (shape, executor)
    return _pool[1]
