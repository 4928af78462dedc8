"""The search space: what each kind of range means, for validation and for Tune."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from fedveil.fl.errors import brief
from fedveil.orchestrator import metrics
from fedveil.orchestrator.config.explain import listed, shown
from fedveil.orchestrator.config.schema import Experiment, SearchSection

KINDS = ("grid", "choice", "uniform", "loguniform", "int")
FIXED = {
    "experiment": "names the sweep",
    "plugins": "they are imported once, before any trial",
    "seeds": "all trials are repeated with the same, so that they compare",
    "data": "one sweep, one data set: errors on two data sets do not compare",
    "data.name": "one sweep, one data set: errors on two data sets do not compare",
    "data.fit": "one sweep, one data set: errors on two data sets do not compare",
    "data.pool": "one sweep, one data set: errors on two data sets do not compare",
    "tracking": "a sweep has one record",
    "runs_dir": "a sweep has one folder",
    "resources": "all trials of a sweep have the same",
    "search": "describes the sweep itself",
}
"""Keys that a sweep can't vary, whole sections included, and why."""


def check_space(experiment: Experiment) -> list[str]:
    """Return what is wrong with an experiment's search section by itself, one line each."""
    search = experiment.search
    if search is None:
        return []
    lines = [f"search.space.{line}" for line in _check_keys(search.space)]
    for index, overrides in enumerate(search.panel):
        lines += [f"search.panel.{index}.{line}" for line in _check_keys(overrides)]
    for key, distribution in search.space.items():
        lines += [f"search.space.{brief(key)}: {line}" for line in _check_distribution(distribution, search.searcher)]
    if not search.space and not search.panel:
        lines.append("search: needs 'space' (dotted key to a range), 'panel' (a list of overrides) or both")
    audit = experiment.audit
    known = metrics.objectives(audit.attack_labels(), audit.build_model_inversions())
    common = [name for name in known if not name.startswith("attack/")]
    lines += [
        f"search.objectives: given {shown(name)}; allowed: {listed(common)}, attack/NAME/METRIC of audit.attacks"
        for name in search.objectives
        if name not in known
    ]
    return [*lines, *_check_drawing(search)]


def _check_drawing(search: SearchSection) -> list[str]:
    """Return what is wrong with the settings that say how trials are drawn from the space."""
    if not search.space:
        return [
            f"search.{key}: given {shown(getattr(search, key))}; it is for drawing from search.space, which is missing"
            for key in ("samples", "searcher", "scheduler")
            if getattr(search, key) != SearchSection.model_fields[key].default
        ]
    lines = []
    if search.scheduler == "asha":
        if len(search.objectives) > 1:
            lines.append(
                f"search.scheduler: asha stops trials by one objective, search.objectives has {len(search.objectives)}"
            )
        elif next(iter(search.objectives)) not in metrics.EVERY_ROUND:
            lines.append(
                f"search.scheduler: asha needs an objective that every round has; given"
                f" {next(iter(search.objectives))!r}, allowed: {', '.join(metrics.EVERY_ROUND)}"
            )
    if search.searcher == "grid" and search.samples > 1:
        lines.append(f"search.samples: given {search.samples}; the grid searcher runs each point once, allowed: 1")
    return lines


def _check_keys(overrides: Mapping[str, Any]) -> list[str]:
    lines = []
    for key in overrides:
        reason = FIXED.get(key) or next((FIXED[top] for top in _ALL_OF if key.startswith(f"{top}.")), None)
        if reason:
            lines.append(f"{brief(key)}: a sweep cannot vary this ({reason})")
    return lines


_ALL_OF = ("experiment", "tracking", "resources", "search")


def _check_distribution(distribution: Mapping[str, list[Any]], searcher: str) -> list[str]:
    if len(distribution) != 1 or next(iter(distribution)) not in KINDS:
        return [f"given {shown(dict(distribution))}; allowed: exactly one of {', '.join(KINDS)} with a list"]
    kind, values = next(iter(distribution.items()))
    if kind in ("grid", "choice"):
        return [] if values else [f"{kind} has no values"]
    if searcher == "grid":
        return [f"given {kind}; the grid searcher needs 'grid' with a list of values"]
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(values) != 2 or len(numbers) != 2 or not numbers[0] < numbers[1]:
        return [f"given {kind}: {shown(values)}; allowed: two numbers, the lower first"]
    if kind == "loguniform" and numbers[0] <= 0:
        return [f"given {kind}: {shown(values)}; both have to be above 0"]
    if kind == "int" and not all(isinstance(v, int) for v in values):
        return [f"given {kind}: {shown(values)}; both have to be whole numbers"]
    return []


def corners(space: Mapping[str, Mapping[str, list[Any]]]) -> Iterator[dict[str, Any]]:
    """Yield settings that together touch every listed value and both ends of every range.

    One key varies at a time, the others keep their first value: enough to find a value that is not allowed.
    """
    if not space:
        return
    values = {key: _touched(*next(iter(distribution.items()))) for key, distribution in space.items()}
    first = {key: options[0] for key, options in values.items()}
    yield first
    for key, options in values.items():
        for option in options[1:]:
            yield {**first, key: option}


def _touched(kind: str, values: list[Any]) -> list[Any]:
    # What is drawn between two whole numbers is not whole.
    return [float(v) for v in values] if kind in ("uniform", "loguniform") else values


def grid_points(space: Mapping[str, Mapping[str, list[Any]]]) -> list[dict[str, Any]]:
    """Return all combinations of a space of lists."""
    keys = list(space)
    return [
        dict(zip(keys, values, strict=True))
        for values in itertools.product(*(next(iter(space[key].values())) for key in keys))
    ]
