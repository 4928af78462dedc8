"""A sweep's trial as Ray Tune runs it: one setting, under each of its seeds in turn."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray import tune

from fedveil.orchestrator.cluster.executor import RayExecutor
from fedveil.orchestrator.cluster.progress import Speaker, enlist
from fedveil.orchestrator.config import Experiment, check, with_overrides
from fedveil.orchestrator.config.plugins import Plugin, install
from fedveil.orchestrator.report import TrialRow
from fedveil.orchestrator.run import checkpoint
from fedveil.orchestrator.run.checkpoint import Saved
from fedveil.orchestrator.run.failures import sentence_of
from fedveil.orchestrator.run.names import claimed, earlier_owners, params_of
from fedveil.orchestrator.run.paths import ExperimentPaths
from fedveil.orchestrator.run.seeds import mean_metrics, one_per_seed, seeded_name
from fedveil.orchestrator.run.setting import Setting, newest
from fedveil.orchestrator.run.tuning import overrides_of
from fedveil.orchestrator.tracking import TrackingSettings

RUNNING = "running_seed"
"""In what a trial reports: the metrics of the seed that runs."""


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
        return [one for each in folders for one in sorted(each.glob(f"{checkpoint.FOLDER}*"))]


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
    Setting(
        seeds=seeds,
        trials=[seeded_name(name, one.seed, of=len(seeds)) for one in seeds],
        token=(job.storage.name, name),
        paths=job.paths,
        tracking=job.tracking,
        board=job.board,
        keep=lambda saved, running: _report(job, saved, running),
        executor=lambda experiment: _slots(experiment, job),
        parent_run_id=job.parent_run_id,
        overrides=overrides,
    ).run(saved)


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
