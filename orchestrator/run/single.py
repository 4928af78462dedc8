"""One setting without Tune, under each of its seeds: what ``fedveil run`` does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from fedveil.fl.errors import FedveilError
from fedveil.orchestrator.cluster.connection import check_fit
from fedveil.orchestrator.cluster.executor import RayExecutor
from fedveil.orchestrator.cluster.progress import plainly, progress_on
from fedveil.orchestrator.config import Experiment
from fedveil.orchestrator.config.plugins import loaded
from fedveil.orchestrator.interrupts import can_be_resumed
from fedveil.orchestrator.report import TrialRow
from fedveil.orchestrator.run import checkpoint
from fedveil.orchestrator.run.alone import goes_on_nowhere, only_run
from fedveil.orchestrator.run.checkpoint import Saved
from fedveil.orchestrator.run.memory import RunMemory, began, new_storage, runs, settings_to_keep
from fedveil.orchestrator.run.mirror import mirrored
from fedveil.orchestrator.run.names import fitted, params_of
from fedveil.orchestrator.run.paths import ExperimentPaths, tracking_settings
from fedveil.orchestrator.run.results import RunResult
from fedveil.orchestrator.run.seeds import one_per_seed
from fedveil.orchestrator.run.setting import Setting, newest
from fedveil.orchestrator.run.setup import Setup, make_setup
from fedveil.orchestrator.run.workers import workers_of
from fedveil.orchestrator.tracking import TrackingSettings, delivering, without_passwords


def run_single(experiment: Experiment, setup: Setup, console: Console, *, resume: bool = False) -> RunResult:
    """Run the experiment's trial, or one for each seed, on the connected Ray cluster with this process's plug-ins.

    Records that earlier runs could not deliver are delivered first.

    Args:
        experiment: without a ``search`` section.
        setup: its images under its first seed.
        console: for progress.
        resume: go on with the last run of that name.

    Raises:
        FedveilError: the trial does not fit the cluster, or its training diverged; or there is nothing to resume, or with
            other settings, or it runs still.
        TrialError: it, or a worker, failed by an error that nobody foresaw.
    """
    paths = ExperimentPaths.of(experiment)
    if resume and paths.copy is None:
        _to_resume(experiment, paths)  # what is wrong is said before anything is written
    tracking = tracking_settings(experiment, paths, published=setup.data.published)
    said = plainly(console)
    resources = experiment.resources
    check_fit(
        workers_of(experiment, at_once=1),
        cpus_per_worker=resources.cpus_per_worker,
        gpus_per_worker=resources.gpus_per_worker,
    )
    with mirrored(paths.root, paths.copy, said, resume=resume):
        memory = _memory(experiment, paths, resume=resume)
        with only_run(paths.checkpoints / memory.storage), delivering(tracking.spool_folder, said):
            runs(paths).keep(memory)
            can_be_resumed()
            saved = _run(experiment, setup, memory, paths, tracking, console)
    rows = [
        TrialRow(name, "FINISHED", params_of(one), metrics)
        for name, one, metrics in zip(memory.trials, one_per_seed(experiment), saved.finished, strict=True)
    ]
    return RunResult(experiment.experiment, tuple(rows), paths.root, tracking.uri)


def _memory(experiment: Experiment, paths: ExperimentPaths, *, resume: bool) -> RunMemory:
    """Return what is to be known of the run, which is an earlier one or has new trials."""
    settings = settings_to_keep(experiment)
    if resume:
        return _to_resume(experiment, paths)
    defense = params_of(experiment)["defense.name"]
    trials = [paths.new_trial(fitted(f"{defense}-seed{one.seed}"))[0] for one in one_per_seed(experiment)]
    return RunMemory(new_storage(), settings, trials)


def _to_resume(experiment: Experiment, paths: ExperimentPaths) -> RunMemory:
    """The last run; where that one has finished, or has other settings, one that went on beside it and was interrupted.

    What had stopped before the last one began was given up for it.
    """
    book, settings, seeds = runs(paths), settings_to_keep(experiment), len(one_per_seed(experiment))

    def saved_of(memory: RunMemory) -> list[Path]:
        return sorted((paths.checkpoints / memory.storage).glob(f"{checkpoint.FOLDER}*"))

    def finished(memory: RunMemory) -> bool:
        return len(newest(saved_of(memory), lambda line: None).finished) == seeds

    last, refusal = None, None
    try:
        last = book.interrupted(settings)
    except FedveilError as error:
        refusal = error
    if last is not None and not finished(last):
        return last
    beside = (
        memory
        for memory in book.earlier(settings)
        if paths.copy is None  # the times of what was fetched tell nothing
        and any(place.stat().st_mtime > began(book.recall().storage) for place in saved_of(memory))
        and not finished(memory)
        and goes_on_nowhere(paths.checkpoints / memory.storage)
    )
    found = next(beside, last)
    if found is None:
        assert refusal is not None
        raise refusal
    return found


def _run(
    experiment: Experiment,
    setup: Setup,
    memory: RunMemory,
    paths: ExperimentPaths,
    tracking: TrackingSettings,
    console: Console,
) -> Saved:
    resources, said = experiment.resources, plainly(console)
    seeds, checkpoints = one_per_seed(experiment), paths.checkpoints / memory.storage
    saved = newest(sorted(checkpoints.glob(f"{checkpoint.FOLDER}*")), said)
    if len(saved.finished) == len(seeds):
        said(f"this run has finished: there is nothing to resume in {runs(paths).file}; start another without --resume")
        return saved
    workers = workers_of(experiment, at_once=1)
    said(f"{workers} worker slot(s), recorded in {without_passwords(tracking.uri)}, files in {paths.root}")

    def keep(saved: Saved, running: Mapping[str, float] | None) -> None:
        done = len(saved.finished) == len(seeds)
        checkpoint.save_next(saved, checkpoints, last=1 if done else 2)  # the last one may be damaged

    with (
        progress_on(console, name=experiment.experiment) as board,
        RayExecutor(
            workers,
            cpus_per_worker=resources.cpus_per_worker,
            gpus_per_worker=resources.gpus_per_worker,
            spread=resources.placement == "spread",
            plugins=loaded(),
            name=experiment.experiment,
        ) as executor,
    ):
        return Setting(
            seeds=seeds,
            trials=memory.trials,
            token=(memory.storage, memory.trials[0]),
            paths=paths,
            tracking=tracking,
            board=board,
            keep=keep,
            executor=lambda one: executor,
            setup=lambda one: setup if one.seed == seeds[0].seed else make_setup(one),
        ).run(saved)
