"""A sweep: Ray Tune runs the panel of fixed trials and then the search, MLflow keeps a parent run and one run per trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console

from fedveil.fl.errors import FedveilError
from fedveil.orchestrator.cluster.connection import amounts, check_fit, own_node, placement_group, room
from fedveil.orchestrator.cluster.progress import Say, Speaker, at_work, plainly, progress_on
from fedveil.orchestrator.config import Experiment, SearchSection
from fedveil.orchestrator.config.plugins import loaded
from fedveil.orchestrator.interrupts import can_be_resumed
from fedveil.orchestrator.report import TrialRow
from fedveil.orchestrator.run.alone import only_sweep
from fedveil.orchestrator.run.failures import without_repeats
from fedveil.orchestrator.run.memory import Memory, new_storage, settings_to_keep, sweeps, whole_states
from fedveil.orchestrator.run.mirror import mirrored
from fedveil.orchestrator.run.names import panel_names, release_claims
from fedveil.orchestrator.run.paths import ExperimentPaths, tracking_settings
from fedveil.orchestrator.run.private import private_tree
from fedveil.orchestrator.run.results import SweepResult, summarise_sweep
from fedveil.orchestrator.run.seeds import one_per_seed
from fedveil.orchestrator.run.trainable import TrialJob, rows_of, run_tuned_trial
from fedveil.orchestrator.run.tuning import Part, settings_of, sweep_parts
from fedveil.orchestrator.run.workers import workers_of
from fedveil.orchestrator.tracking import SweepTracker, SweptKey, TrackingSettings, delivering, without_passwords
from fedveil.orchestrator.tracking.names import TITLE

CHART = "pareto.png"
"""The one figure of a sweep that shows no images."""


def swept_keys(search: SearchSection) -> list[SweptKey]:
    """Return what a search varies, for descriptions and views: a panel's defences, with their settings, are one thing."""
    found = [
        SweptKey(key, f"{kind} {values}", all(isinstance(v, (int, float)) for v in values))
        for key, one in search.space.items()
        for kind, values in one.items()
    ]
    defenses = [{"defense": one["defense"]} for one in search.panel if "defense" in one]
    if len(defenses) > 1:
        found.append(SweptKey(TITLE, f"panel {', '.join(dict.fromkeys(panel_names(defenses)))}", numeric=False))
    return found


def run_sweep(
    experiment: Experiment,
    raw: Mapping[str, Any],
    console: Console,
    *,
    published: bool,
    resume: bool = False,
) -> SweepResult:
    """Run a sweep on the connected Ray cluster and return its trials. They get the plug-ins of this process.

    Args:
        experiment: with a ``search`` section.
        raw: the mapping behind it.
        console: for progress.
        published: the images are of a published data set, so that pictures of them may be recorded.
        resume: go on with an interrupted sweep of that name.

    Raises:
        FedveilError: the trial does not fit the cluster, or there is nothing to resume, or with other settings, or a sweep
            of that name runs in this folder.
    """
    if experiment.search is None:
        raise FedveilError("this file has no 'search' section; run it with: fedveil run FILE")
    paths = ExperimentPaths.of(experiment)
    settings = settings_to_keep(experiment)
    if resume and paths.copy is None:
        sweeps(paths).interrupted(settings)  # what is wrong is said before anything is written
    resources = experiment.resources
    check_fit(
        max(workers_of(experiment, at_once=part.at_once) for part in sweep_parts(experiment, experiment.search)),
        cpus_per_worker=resources.cpus_per_worker,
        gpus_per_worker=resources.gpus_per_worker,
    )
    tracking = tracking_settings(experiment, paths, published=published)
    with only_sweep(paths), mirrored(paths.root, paths.copy, plainly(console), resume=resume):
        return _sweep_in(paths, experiment, experiment.search, raw, console, tracking, settings, resume=resume)


def _sweep_in(
    paths: ExperimentPaths,
    experiment: Experiment,
    search: SearchSection,
    raw: Mapping[str, Any],
    console: Console,
    tracking: TrackingSettings,
    settings: Mapping[str, Any],
    *,
    resume: bool,
) -> SweepResult:
    before = sweeps(paths).interrupted(settings) if resume else None
    resources = experiment.resources
    seeds = [one.seed for one in one_per_seed(experiment)]
    parts = [(part, workers_of(experiment, at_once=part.at_once)) for part in sweep_parts(experiment, search)]
    workers = " or ".join(map(str, sorted({one for _, one in parts})))
    trials = settings_of(search) * len(seeds)
    places = room(cpus_per_worker=resources.cpus_per_worker, gpus_per_worker=resources.gpus_per_worker)
    at_once = max(max(1, min(part.at_once, places // own)) for part, own in parts)
    # Of a resumed sweep some trials are over, and a scheduler ends some early: there nobody knows how long it takes.
    countable = before is None and search.scheduler == "none"
    plainly(console)(
        f"{experiment.experiment}: {trials} trials, {workers} worker(s) each with"
        f" {amounts({'CPU': resources.cpus_per_worker, 'GPU': resources.gpus_per_worker})}, recorded in"
        f" {without_passwords(tracking.uri)}, files in {paths.root}"
    )
    with (
        delivering(tracking.spool_folder, plainly(console)),
        SweepTracker(
            tracking,
            name=experiment.experiment,
            swept=swept_keys(search),
            objectives=search.objectives,
            params={
                "data.name": experiment.data.name,
                "model.name": experiment.model.name,
                "seed": ", ".join(map(str, seeds)),
            },
            run_id=None if before is None else before.run_id,
            image_step=experiment.audit.round_numbers(experiment.fl.rounds)[0],
        ) as parent,
        progress_on(console, name=experiment.experiment, trials=trials if countable else 0, at_once=at_once) as board,
        at_work(board),
    ):
        storage = paths.tune / (new_storage() if before is None else before.storage)
        starts = 0 if before is None else before.starts + 1
        sweeps(paths).keep(Memory(parent.run_id, storage.name, settings, starts))
        can_be_resumed()
        job = TrialJob(
            # What a trial writes down of its settings holds no password: where to record, it is told apart from them.
            raw={k: without_passwords(v) if k == "tracking" else v for k, v in raw.items() if k != "search"},
            plugins=loaded(),
            objectives=tuple(search.objectives),
            tracking=tracking,
            parent_run_id=parent.run_id,
            paths=paths,
            storage=storage,
            board=board,
            folder=Path.cwd(),
            workers=1,
        )
        rows: list[TrialRow] = []
        for part, own in parts:
            try:
                with without_repeats():
                    results = _tuner(part, replace(job, workers=own), experiment, Speaker(board, part.name)).fit()
            finally:
                private_tree(storage)  # Tune writes for everybody, into a folder that is not
            rows += [row for i in range(len(results)) for row in rows_of(results[i], job)]
            parent.fail_dead({row.name: row.error for row in rows if row.error is not None})
        outcome = summarise_sweep(experiment.experiment, rows, paths, tracking.uri)
        drawn = [path for path in outcome.files if path.exists()]
        charts = [path for path in drawn if path.name == CHART]
        parent.summary(outcome.metrics, charts, step=starts, pictures=[path for path in drawn if path.name != CHART])
    return outcome


def _tuner(part: Part, job: TrialJob, experiment: Experiment, say: Say) -> tune.Tuner:
    resources = experiment.resources
    trial = tune.with_parameters(run_tuned_trial, job=job)
    # Ray's dashboard shows this of each process that leads trials, of one after the other.
    trial.__name__ = f"{experiment.experiment}: trials"
    trainable = tune.with_resources(
        trial,
        placement_group(
            job.workers,
            cpus_per_worker=resources.cpus_per_worker,
            gpus_per_worker=resources.gpus_per_worker,
            spread=resources.placement == "spread",
            # It only waits for its workers, and leaves its checkpoints and records where this process finds them.
            driver_cpus=0,
            driver_node=own_node(),
        ),
    )
    run = tune.RunConfig(
        name=part.name,
        storage_path=str(job.storage),
        verbose=0,
        failure_config=tune.FailureConfig(max_failures=0),
        checkpoint_config=tune.CheckpointConfig(num_to_keep=2),  # the last one may be damaged
    )
    # It writes its file of settings, tuner.pkl, anew: what an earlier one of the same settings holds is never believed.
    tuner = tune.Tuner(trainable, param_space=part.space, tune_config=part.config, run_config=run)
    path = job.storage / part.name
    if not whole_states(path, say):
        # Its trials go on from their checkpoints, under other numbers of Tune's.
        release_claims(job.names, f"{part.name}/")
        return tuner
    return tune.Tuner.restore(str(path), trainable, resume_unfinished=True, resume_errored=True, param_space=part.space)
