"""A sweep: Ray Tune runs the panel of fixed trials and then the search, MLflow keeps a parent run and one run per trial."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray import tune
from rich.console import Console
from rich.markup import escape

from fl.errors import FedveilError
from orchestrator import checkpoint
from orchestrator.cluster import amounts, check_fit, placement_group
from orchestrator.config import Experiment, SearchSection, check, with_overrides
from orchestrator.config.space import grid_points
from orchestrator.executor import RayExecutor
from orchestrator.names import panel_names, trial_name
from orchestrator.outcome import SweepOutcome, summarise_sweep
from orchestrator.places import SweepFiles, tracking_settings
from orchestrator.progress import Speaker, progress_on
from orchestrator.report import TrialRow
from orchestrator.stage import set_stage
from orchestrator.tracking import SweepTracker, SweptKey, TrackingSettings, TrialTracker
from orchestrator.trial import Trial, params_of

DRIVER_CPUS = 0.01
"""The trial's driver only waits for its workers."""

PANEL_KEY = "panel"
FINAL_KEY = "trial_reached_its_end"


@dataclass(frozen=True)
class TrialJob:
    """What every trial of a sweep shares; it travels to the trials.

    Attributes:
        raw: the experiment file with its overrides, without the search.
        tracking: where to record.
        parent_run_id: of the sweep's run.
        files: where to write.
        board: for progress.
    """

    raw: dict[str, Any]
    tracking: TrackingSettings
    parent_run_id: str | None
    files: SweepFiles
    board: Any


_pool: tuple[tuple[Any, ...], RayExecutor] | None = None


def _executor(experiment: Experiment) -> RayExecutor:
    """Return this process's worker slots; a process that runs several trials keeps them between two."""
    global _pool
    resources = experiment.resources
    shape = (
        resources.workers,
        resources.cpus_per_worker,
        resources.gpus_per_worker,
        ray.get_runtime_context().get_placement_group_id(),
    )
    if _pool is not None and _pool[0] != shape:
        _pool[1].close()
        _pool = None
    if _pool is None:
        executor = RayExecutor(
            resources.workers,
            cpus_per_worker=resources.cpus_per_worker,
            gpus_per_worker=resources.gpus_per_worker,
        )
        _pool = (shape, executor)
    return _pool[1]


def run_tuned_trial(config: dict[str, Any], job: TrialJob) -> None:
    """The Tune trainable: one trial, resumed from its checkpoint if it has one."""
    overrides, name = _overrides_of(config)
    experiment = check(with_overrides(job.raw, overrides))
    saved = tune.get_checkpoint()
    progress = None
    if saved is not None:
        with saved.as_directory() as folder:
            progress = checkpoint.load(Path(folder))
    say = Speaker(job.board, name)
    params = params_of(experiment)
    plain = {key: value for key, value in overrides.items() if not isinstance(value, (dict, list))}
    tracker = TrialTracker(
        job.tracking,
        parent_run_id=job.parent_run_id,
        name=name,
        params={**params, **plain},
        swept=list(plain),
        run_id=progress.run_id if progress else None,
    )
    objectives = config["objectives"]
    with tracker:
        trial = Trial(experiment, _executor(experiment), job.files.trial(name), say)

        # Searchers and schedulers look their objectives up in every report, the last one too.
        latest: dict[str, float] = dict.fromkeys(objectives, math.nan)

        def on_round(now: checkpoint.Progress, running: Mapping[str, float]) -> None:
            latest.update(running)
            with TemporaryDirectory() as folder:
                checkpoint.save(now, Path(folder))
                tune.report(dict(latest), checkpoint=tune.Checkpoint.from_directory(folder))

        final = trial.run(tracker, resumed=progress, on_round=on_round)
    tune.report({**latest, **final, FINAL_KEY: True})


def _overrides_of(config: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    if PANEL_KEY in config:
        return dict(config[PANEL_KEY]["overrides"]), config[PANEL_KEY]["name"]
    overrides = {key: value for key, value in config.items() if key != "objectives"}
    return overrides, trial_name(overrides)


def _tune_space(search: SearchSection) -> dict[str, Any]:
    return {key: _tune_range(kind, values, search) for key, one in search.space.items() for kind, values in one.items()}


def _tune_range(kind: str, values: list[Any], search: SearchSection) -> Any:
    if kind == "choice" or (kind == "grid" and search.searcher == "optuna"):
        return tune.choice(values)
    if kind == "grid":
        return tune.grid_search(values)
    if kind == "int":
        # Tune's upper end is exclusive, ours is not.
        return tune.randint(values[0], values[1] + 1)
    return tune.loguniform(*values) if kind == "loguniform" else tune.uniform(*values)


def _tune_config(experiment: Experiment, search: SearchSection, *, samples: int, searching: bool) -> tune.TuneConfig:
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.basic_variant import BasicVariantGenerator
    from ray.tune.search.optuna import OptunaSearch

    metric, mode = next(iter(search.objectives.items()))
    algorithm: Any = BasicVariantGenerator(random_state=experiment.seed)
    if searching and search.searcher == "optuna":
        several = len(search.objectives) > 1
        algorithm = OptunaSearch(
            metric=list(search.objectives) if several else metric,
            mode=list(search.objectives.values()) if several else mode,
            seed=experiment.seed,
        )
    scheduler = None
    if searching and search.scheduler == "asha":
        # A trial reports after each round and once more with its final metrics, which must not be cut off.
        scheduler = ASHAScheduler(metric=metric, mode=mode, grace_period=1, max_t=experiment.fl.rounds + 1)
    return tune.TuneConfig(
        num_samples=samples,
        search_alg=algorithm,
        scheduler=scheduler,
        max_concurrent_trials=search.concurrent,
        reuse_actors=True,
        trial_name_creator=lambda trial: f"{trial.trial_id}",
        trial_dirname_creator=lambda trial: f"{trial.trial_id}",
    )


def _tuners(
    experiment: Experiment, search: SearchSection, job: TrialJob, files: SweepFiles
) -> list[tuple[str, dict[str, Any], tune.TuneConfig]]:
    objectives = list(search.objectives)
    parts: list[tuple[str, dict[str, Any], tune.TuneConfig]] = []
    fixed = [dict(overrides) for overrides in search.panel]
    if search.searcher == "grid" and search.space:
        fixed += grid_points(search.space)
    if fixed:
        named = [{"name": n, "overrides": o} for n, o in zip(panel_names(fixed), fixed, strict=True)]
        space = {PANEL_KEY: tune.grid_search(named), "objectives": objectives}
        parts.append(("panel", space, _tune_config(experiment, search, samples=1, searching=False)))
    if search.space and search.searcher != "grid":
        space = {**_tune_space(search), "objectives": objectives}
        config = _tune_config(experiment, search, samples=search.samples, searching=True)
        parts.append(("search", space, config))
    return parts


def swept_keys(search: SearchSection) -> list[SweptKey]:
    """Return what a search varies, for descriptions and views."""
    keys = [
        SweptKey(key, f"{kind} {values}", all(isinstance(v, (int, float)) for v in values))
        for key, one in search.space.items()
        for kind, values in one.items()
    ]
    return keys


def run_sweep(
    experiment: Experiment, raw: Mapping[str, Any], console: Console, *, resume: bool = False
) -> SweepOutcome:
    """Run a sweep on the connected Ray cluster and return its trials.

    Args:
        experiment: with a ``search`` section.
        raw: the mapping behind it.
        console: for progress.
        resume: go on with an interrupted sweep of that name.

    Raises:
        FedveilError: the trial does not fit the cluster, or there is nothing to resume.
    """
    search = experiment.search
    if search is None:
        raise FedveilError("this file has no 'search' section; run it with: fedveil run FILE")
    files = SweepFiles.of(experiment)
    stage = set_stage(experiment)
    resources = experiment.resources
    check_fit(
        resources.workers,
        cpus_per_worker=resources.cpus_per_worker,
        gpus_per_worker=resources.gpus_per_worker,
    )
    one_machine = sum(bool(node["Alive"]) for node in ray.nodes()) == 1
    tracking = tracking_settings(experiment, files, published=stage.data.published, deliver=True)
    if not one_machine and tracking.uri.startswith("sqlite"):
        raise FedveilError(
            f"tracking.uri: {tracking.uri} is a file of this machine, the cluster has several; start an MLflow server and"
            " set tracking.uri or MLFLOW_TRACKING_URI to its http address"
        )
    memory = files.root / "sweep.json"
    run_id = json.loads(memory.read_text())["run_id"] if resume and memory.exists() else None
    keys = swept_keys(search)
    # A trial on this machine leaves its record in the spool and the driver delivers: the trial need not import MLflow.
    for_trials = replace(tracking, deliver=not one_machine)
    console.print(
        f"[bold]{experiment.experiment}[/bold]: {_count(search)} trials, {resources.workers} workers with"
        f" {amounts({'CPU': resources.cpus_per_worker, 'GPU': resources.gpus_per_worker})} each, recorded in"
        f" {escape(tracking.uri)}",
        soft_wrap=True,
    )
    with (
        SweepTracker(
            tracking,
            name=experiment.experiment,
            swept=keys,
            objectives=search.objectives,
            params={
                "data.name": experiment.data.name,
                "model.name": experiment.model.name,
                "seed": experiment.seed,
            },
            run_id=run_id,
        ) as parent,
        progress_on(console) as board,
    ):
        files.root.mkdir(parents=True, exist_ok=True)
        memory.write_text(json.dumps({"run_id": parent.run_id}))
        base = {key: value for key, value in raw.items() if key != "search"}
        job = TrialJob(base, for_trials, parent.run_id, files, board)
        rows: list[TrialRow] = []
        for name, space, config in _tuners(experiment, search, job, files):
            results = _tuner(name, space, config, job, experiment, resume=resume).fit()
            rows += [_row(results[i], base) for i in range(len(results))]
            parent.deliver()
        outcome = summarise_sweep(experiment.experiment, rows, search.objectives, files.root)
        parent.summary(outcome.metrics, [path for path in outcome.files if path.exists()])
    return outcome


def _tuner(
    name: str,
    space: dict[str, Any],
    config: tune.TuneConfig,
    job: TrialJob,
    experiment: Experiment,
    *,
    resume: bool,
) -> tune.Tuner:
    resources = experiment.resources
    trainable = tune.with_resources(
        tune.with_parameters(run_tuned_trial, job=job),
        placement_group(
            resources.workers,
            cpus_per_worker=resources.cpus_per_worker,
            gpus_per_worker=resources.gpus_per_worker,
            driver_cpus=DRIVER_CPUS,
        ),
    )
    path = job.files.tune / name
    if resume and tune.Tuner.can_restore(str(path)):
        return tune.Tuner.restore(str(path), trainable, resume_unfinished=True, restart_errored=True, param_space=space)
    run = tune.RunConfig(
        name=name,
        storage_path=str(job.files.tune),
        verbose=0,
        failure_config=tune.FailureConfig(max_failures=0),
        checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
    )
    return tune.Tuner(trainable, param_space=space, tune_config=config, run_config=run)


def _count(search: SearchSection) -> int:
    drawn = len(grid_points(search.space)) if search.searcher == "grid" else search.samples
    return len(search.panel) + (drawn if search.space else 0)


def _row(result: Any, base: Mapping[str, Any]) -> TrialRow:
    overrides, name = _overrides_of(result.config)
    params = params_of(check(with_overrides(dict(base), overrides)))
    numbers = {
        key: float(value)
        for key, value in (result.metrics or {}).items()
        if "/" in key and isinstance(value, (int, float)) and not key.startswith("config/")
    }
    if result.error is not None:
        lines = [line for line in str(result.error).splitlines() if line.strip()]
        return TrialRow(name, "FAILED", params, {}, lines[-1] if lines else repr(result.error))
    # Only a trial that reached its end says so; a scheduler stopped the others.
    return TrialRow(name, "FINISHED" if FINAL_KEY in (result.metrics or {}) else "KILLED", params, numbers)
