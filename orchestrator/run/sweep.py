"""A sweep: Ray Tune runs the panel of fixed trials and then the search, MLflow keeps a parent run and one run per trial."""

from __future__ import annotations

import json
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray import tune
from rich.console import Console
from rich.markup import escape

from fedveil.fl.errors import FedveilError
from fedveil.orchestrator.cluster.connection import amounts, check_fit, own_node, placement_group
from fedveil.orchestrator.cluster.executor import RayExecutor
from fedveil.orchestrator.cluster.progress import Speaker, progress_on
from fedveil.orchestrator.config import Experiment, SearchSection, check, with_overrides
from fedveil.orchestrator.config.space import grid_points
from fedveil.orchestrator.report import TrialRow
from fedveil.orchestrator.run import checkpoint
from fedveil.orchestrator.run.names import panel_names, trial_name
from fedveil.orchestrator.run.outcome import SweepOutcome, summarise_sweep
from fedveil.orchestrator.run.paths import ExperimentPaths, tracking_settings
from fedveil.orchestrator.run.setup import make_setup
from fedveil.orchestrator.run.trial import Trial, params_of
from fedveil.orchestrator.tracking import (
    Replayed,
    SweepTracker,
    SweptKey,
    TrackingSettings,
    TrialTracker,
    without_passwords,
)
from fedveil.orchestrator.tracking.spool import PENDING

PANEL_KEY = "panel"
FINAL_KEY = "trial_reached_its_end"
CHART = "pareto.png"
"""The one figure of a sweep that shows no images."""


@dataclass(frozen=True)
class TrialJob:
    """What every trial of a sweep shares; it travels to the trials.

    Attributes:
        raw: the experiment file with its overrides, without the search and without passwords.
        tracking: where to record.
        parent_run_id: of the sweep's run.
        files: where to write.
        storage: Tune's, for this sweep alone.
        board: for progress.
        folder: the user's, below which data files are found; Tune gives each trial one of its own.
    """

    raw: dict[str, Any]
    tracking: TrackingSettings
    parent_run_id: str | None
    files: ExperimentPaths
    storage: Path
    board: Any
    folder: Path


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
    if job.folder.is_dir():
        os.chdir(job.folder)
    overrides, name = _overrides_of(config)
    experiment = check(with_overrides(job.raw, overrides))
    saved = tune.get_checkpoint()
    progress = None
    if saved is not None:
        with saved.as_directory() as folder:
            progress = checkpoint.load(Path(folder))
    own_run = f"{job.storage.name}/{tune.get_context().get_trial_id()}"
    say = Speaker(job.board, name)
    params = params_of(experiment)
    plain = {key: value for key, value in overrides.items() if not isinstance(value, (dict, list))}
    tracker = TrialTracker(
        job.tracking,
        parent_run_id=job.parent_run_id,
        name=name,
        params={**params, **plain},
        swept=list(plain),
        # A trial that failed before its first checkpoint finds its run again by a name that it can work out.
        run_id=progress.run_id if progress else PENDING + uuid.uuid5(uuid.NAMESPACE_OID, own_run).hex,
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


def tune_config(experiment: Experiment, search: SearchSection, *, samples: int, searching: bool) -> tune.TuneConfig:
    """Return how Tune draws trials.

    Args:
        experiment: with a search section.
        search: this section.
        samples: trials to draw.
        searching: by the section's searcher and scheduler; False for a list of fixed trials.
    """
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.basic_variant import BasicVariantGenerator
    from ray.tune.search.optuna import OptunaSearch

    metric, mode = next(iter(search.objectives.items()))
    optuna = searching and search.searcher == "optuna"
    # Tune limits Optuna, but only warns that it does not limit a generator that it is handed.
    algorithm: Any = BasicVariantGenerator(max_concurrent=search.concurrent or 0, random_state=experiment.seed)
    if optuna:
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
        max_concurrent_trials=search.concurrent if optuna else None,
        reuse_actors=True,
        trial_name_creator=lambda trial: f"{trial.trial_id}",
        trial_dirname_creator=lambda trial: f"{trial.trial_id}",
    )


def _tuners(
    experiment: Experiment, search: SearchSection, job: TrialJob, files: ExperimentPaths
) -> list[tuple[str, dict[str, Any], tune.TuneConfig]]:
    objectives = list(search.objectives)
    parts: list[tuple[str, dict[str, Any], tune.TuneConfig]] = []
    fixed = [dict(overrides) for overrides in search.panel]
    if search.searcher == "grid" and search.space:
        fixed += grid_points(search.space)
    if fixed:
        named = [{"name": n, "overrides": o} for n, o in zip(panel_names(fixed), fixed, strict=True)]
        space = {PANEL_KEY: tune.grid_search(named), "objectives": objectives}
        parts.append(("panel", space, tune_config(experiment, search, samples=1, searching=False)))
    if search.space and search.searcher != "grid":
        space = {**_tune_space(search), "objectives": objectives}
        config = tune_config(experiment, search, samples=search.samples, searching=True)
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
        FedveilError: the trial does not fit the cluster, or there is nothing to resume, or with other settings.
    """
    search = experiment.search
    if search is None:
        raise FedveilError("this file has no 'search' section; run it with: fedveil run FILE")
    files = ExperimentPaths.of(experiment)
    settings = without_passwords(experiment.model_dump(mode="json"))
    before = _interrupted(files.memory, settings) if resume else {}
    setup = make_setup(experiment)
    resources = experiment.resources
    check_fit(
        resources.workers,
        cpus_per_worker=resources.cpus_per_worker,
        gpus_per_worker=resources.gpus_per_worker,
    )
    tracking = tracking_settings(experiment, files, published=setup.data.published, deliver=True)
    # Trials run beside this process and leave their records in the spool: only this one has to import MLflow.
    for_trials = replace(tracking, deliver=False)
    console.print(
        f"[bold]{experiment.experiment}[/bold]: {trials_of(search)} trials, {resources.workers} workers with"
        f" {amounts({'CPU': resources.cpus_per_worker, 'GPU': resources.gpus_per_worker})} each, recorded in"
        f" {escape(without_passwords(tracking.uri))}",
        soft_wrap=True,
    )
    with (
        SweepTracker(
            tracking,
            name=experiment.experiment,
            swept=swept_keys(search),
            objectives=search.objectives,
            params={
                "data.name": experiment.data.name,
                "model.name": experiment.model.name,
                "seed": experiment.seed,
            },
            run_id=before.get("run_id"),
            image_step=experiment.audit.round_numbers(experiment.fl.rounds)[0],
        ) as parent,
        delivering(parent.deliver),
        progress_on(console) as board,
    ):
        files.root.mkdir(parents=True, exist_ok=True)
        # Not shared with an earlier sweep of that name, whose trials a resumed one would take for its own.
        storage = files.tune / before.get("tune", f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}")
        memory = {"run_id": parent.run_id, "tune": storage.name, "settings": settings}
        files.memory.write_text(json.dumps(memory, indent=2) + "\n")
        # What a trial writes down of its settings holds no password: where to record, it is told apart from them.
        base = {k: without_passwords(v) if k == "tracking" else v for k, v in raw.items() if k != "search"}
        job = TrialJob(base, for_trials, parent.run_id, files, storage, board, Path.cwd())
        rows: list[TrialRow] = []
        for name, space, config in _tuners(experiment, search, job, files):
            results = _tuner(name, space, config, job, experiment).fit()
            rows += [_row(results[i], base) for i in range(len(results))]
            parent.deliver()
        outcome = summarise_sweep(experiment.experiment, rows, search.objectives, files.root)
        drawn = [path for path in outcome.files if path.exists()]
        charts = [path for path in drawn if path.name == CHART]
        parent.summary(outcome.metrics, charts, pictures=[path for path in drawn if path.name != CHART])
    return outcome


@contextmanager
def delivering(deliver: Callable[[], Replayed], *, every: float = 5.0) -> Iterator[None]:
    """Call ``deliver`` every so many seconds until the block ends, so that MLflow shows trials while they run.

    While something waits (a server that does not answer) the pause doubles, up to twelve times ``every``.
    """
    over = threading.Event()

    def work() -> None:
        pause = every
        while not over.wait(pause):
            pause = min(2 * pause, 12 * every) if deliver().waiting else every

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        yield
    finally:
        over.set()
        worker.join(60)  # a server that never answers must not hold up the end; the spool keeps what is left


def _interrupted(memory: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return ``run_id`` and ``tune``, the name of Tune's storage, of the sweep that left ``memory``.

    Raises:
        FedveilError: there was none, or it had other settings.
    """
    if not memory.exists():
        raise FedveilError(f"--resume: there is nothing to resume, no {memory}; start the sweep without --resume")
    before = json.loads(memory.read_text())
    changed = _differing(before.get("settings", {}), settings)
    if changed:
        raise FedveilError(
            f"--resume: the settings are not those of the sweep in {memory}: {', '.join(changed)}; set them back, or start"
            " anew without --resume"
        )
    return {"run_id": before["run_id"], "tune": before["tune"]}


def _differing(one: Any, other: Any, key: str = "") -> list[str]:
    """Return the dotted keys at which two nested mappings differ."""
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return [] if one == other else [key]
    below = sorted(one.keys() | other.keys())
    return [line for k in below for line in _differing(one.get(k), other.get(k), f"{key}.{k}" if key else k)]


def _tuner(
    name: str, space: dict[str, Any], config: tune.TuneConfig, job: TrialJob, experiment: Experiment
) -> tune.Tuner:
    resources = experiment.resources
    trainable = tune.with_resources(
        tune.with_parameters(run_tuned_trial, job=job),
        placement_group(
            resources.workers,
            cpus_per_worker=resources.cpus_per_worker,
            gpus_per_worker=resources.gpus_per_worker,
            # It only waits for its workers, and leaves its checkpoints and records where this process finds them.
            driver_cpus=0,
            driver_node=own_node(),
        ),
    )
    path = job.storage / name
    if tune.Tuner.can_restore(str(path)):
        return tune.Tuner.restore(str(path), trainable, resume_unfinished=True, resume_errored=True, param_space=space)
    run = tune.RunConfig(
        name=name,
        storage_path=str(job.storage),
        verbose=0,
        failure_config=tune.FailureConfig(max_failures=0),
        checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
    )
    return tune.Tuner(trainable, param_space=space, tune_config=config, run_config=run)


def trials_of(search: SearchSection) -> int:
    """Return how many trials a sweep has."""
    if not search.space:
        drawn = 0
    elif search.searcher == "grid":
        drawn = len(grid_points(search.space))
    else:
        # Tune draws all samples at each point of a grid; Optuna takes a grid for a choice.
        grids = {key: one for key, one in search.space.items() if "grid" in one and search.searcher == "random"}
        drawn = search.samples * len(grid_points(grids))
    return len(search.panel) + drawn


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
