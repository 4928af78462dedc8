"""One setting without Tune, under each of its seeds: what ``fedveil run`` does."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from fedveil.orchestrator.cluster.executor import RayExecutor
from fedveil.orchestrator.cluster.progress import Speaker, plainly, progress_on
from fedveil.orchestrator.config import Experiment
from fedveil.orchestrator.config.plugins import loaded
from fedveil.orchestrator.report import TrialRow
from fedveil.orchestrator.run.callbacks import Costs, Speech
from fedveil.orchestrator.run.failures import logged
from fedveil.orchestrator.run.mirror import mirrored
from fedveil.orchestrator.run.names import fitted, params_of
from fedveil.orchestrator.run.paths import ExperimentPaths, tracking_settings
from fedveil.orchestrator.run.recording import Files, Tracking
from fedveil.orchestrator.run.results import RunResult
from fedveil.orchestrator.run.seeds import one_per_seed
from fedveil.orchestrator.run.setup import Setup, make_setup
from fedveil.orchestrator.run.tags import tags_of
from fedveil.orchestrator.run.trial import Trial
from fedveil.orchestrator.run.workers import workers_of
from fedveil.orchestrator.tracking import TrackingSettings, TrialTracker, delivering, without_passwords


def run_single(experiment: Experiment, setup: Setup, console: Console) -> RunResult:
    """Run the experiment's trial, or one for each seed, on the connected Ray cluster with this process's plug-ins.

    Records that earlier runs could not deliver are delivered first.

    Args:
        experiment: without a ``search`` section.
        setup: its images under its first seed.
        console: for progress.

    Raises:
        FedveilError: the trial does not fit the cluster, or its training diverged.
        TrialError: it, or a worker, failed by an error that nobody foresaw.
    """
    paths = ExperimentPaths.of(experiment)
    tracking = tracking_settings(experiment, paths, published=setup.data.published)
    resources = experiment.resources
    workers = workers_of(experiment, at_once=1)
    said = plainly(console)
    said(f"{workers} worker slot(s), recorded in {without_passwords(tracking.uri)}")
    rows = []
    with (
        mirrored(paths.root, paths.copy, said),
        delivering(tracking.spool_folder, said),
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
        for number, one in enumerate(one_per_seed(experiment)):
            own = setup if number == 0 else make_setup(one)
            rows.append(_run_seed(one, own, executor, paths, tracking, board))
    return RunResult(experiment.experiment, tuple(rows), paths.root)


def _run_seed(
    experiment: Experiment,
    setup: Setup,
    executor: RayExecutor,
    paths: ExperimentPaths,
    tracking: TrackingSettings,
    board: Any,
) -> TrialRow:
    params = params_of(experiment)
    name, own = paths.new_trial(f"{fitted(str(params['defense.name']))}-seed{experiment.seed}")
    executor.say = say = Speaker(board, name)
    executor.trial = name
    with (
        logged(own.folder),
        TrialTracker(tracking, parent_run_id=None, name=name, params=params, tags=tags_of(experiment)) as tracker,
    ):
        callbacks = [
            Costs(experiment.fl.rounds),
            Speech(say, experiment, setup),
            Files(own, experiment, setup),
            Tracking(tracker, own, experiment),
        ]
        result = Trial(experiment, setup, executor, cache=own.cache, callbacks=callbacks).run()
    return TrialRow(name, "FINISHED", params, result.metrics)
