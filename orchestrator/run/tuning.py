"""How Ray Tune draws a sweep's trials, and how many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray import tune

from fedveil.defense.checks import MOST
from fedveil.orchestrator.config import Experiment, SearchSection
from fedveil.orchestrator.config.space import grid_points
from fedveil.orchestrator.run.names import panel_names, trial_name
from fedveil.orchestrator.run.seeds import one_per_seed

PANEL_KEY = "panel"


@dataclass(frozen=True)
class Part:
    """One of the two passes of a sweep.

    Attributes:
        name: ``panel``, the fixed trials, or ``search``.
        space: for Tune.
        config: for Tune.
        at_once: trials that may run side by side.
    """

    name: str
    space: dict[str, Any]
    config: tune.TuneConfig
    at_once: int


def sweep_parts(experiment: Experiment, search: SearchSection) -> list[Part]:
    """Return a sweep's passes, in their order."""
    parts = []
    most = search.concurrent or MOST
    fixed = [dict(overrides) for overrides in search.panel]
    if search.searcher == "grid" and search.space:
        fixed += grid_points(search.space)
    if fixed:
        named = [{"name": n, "overrides": o} for n, o in zip(panel_names(fixed), fixed, strict=True)]
        config = tune_config(experiment, search, samples=1, searching=False)
        parts.append(Part("panel", {PANEL_KEY: tune.grid_search(named)}, config, min(most, len(fixed))))
    if search.space and search.searcher != "grid":
        space = {key: _range(*next(iter(one.items())), search) for key, one in search.space.items()}
        config = tune_config(experiment, search, samples=search.samples, searching=True)
        parts.append(Part("search", space, config, min(most, settings_of(search) - len(fixed))))
    return parts


def overrides_of(config: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return what a trial that Tune drew overrides, and its name."""
    if PANEL_KEY in config:
        return dict(config[PANEL_KEY]["overrides"]), config[PANEL_KEY]["name"]
    return dict(config), trial_name(config)


def _range(kind: str, values: list[Any], search: SearchSection) -> Any:
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

    seed = one_per_seed(experiment)[0].seed
    metric, mode = next(iter(search.objectives.items()))
    optuna = searching and search.searcher == "optuna"
    # Tune limits Optuna, but only warns that it does not limit a generator that it is handed.
    algorithm: Any = BasicVariantGenerator(max_concurrent=search.concurrent or 0, random_state=seed)
    if optuna:
        several = len(search.objectives) > 1
        algorithm = OptunaSearch(
            metric=list(search.objectives) if several else metric,
            mode=list(search.objectives.values()) if several else mode,
            seed=seed,
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


def settings_of(search: SearchSection) -> int:
    """Return how many settings a sweep tries, each under every seed."""
    if not search.space:
        drawn = 0
    elif search.searcher == "grid":
        drawn = len(grid_points(search.space))
    else:
        # Tune draws all samples at each point of a grid; Optuna takes a grid for a choice.
        grids = {key: one for key, one in search.space.items() if "grid" in one and search.searcher == "random"}
        drawn = search.samples * len(grid_points(grids))
    return len(search.panel) + drawn
