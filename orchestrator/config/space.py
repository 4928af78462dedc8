"""The search space: what each kind of range means, for validation and for Tune."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.config.schema import SearchSection

KINDS = ("grid", "choice", "uniform", "loguniform", "int")
SCHEDULED = ("fl/accuracy", "fl/loss")
"""Metrics that exist after every round, so that a scheduler can compare trials by them."""
OBJECTIVE_PREFIXES = ("utility/", "privacy/", "attack/", "cost/", "fl/")


def check_space(search: SearchSection) -> list[str]:
    """Return what is wrong with a search section by itself, one line each."""
    lines = []
    for key, distribution in search.space.items():
        lines += [f"search.space.{key}: {line}" for line in _check_distribution(distribution, search.searcher)]
    if not search.space and not search.panel:
        lines.append("search: needs 'space' (dotted key to a range), 'panel' (a list of overrides) or both")
    for name in search.objectives:
        if not name.startswith(OBJECTIVE_PREFIXES):
            lines.append(
                f"search.objectives: given {name!r}; a metric's name starts with {', '.join(OBJECTIVE_PREFIXES)}"
            )
    if search.scheduler == "asha":
        if len(search.objectives) > 1:
            lines.append(
                f"search.scheduler: asha stops trials by one objective, search.objectives has {len(search.objectives)}"
            )
        elif next(iter(search.objectives)) not in SCHEDULED:
            lines.append(
                f"search.scheduler: asha needs an objective that every round has; given"
                f" {next(iter(search.objectives))!r}, allowed: {', '.join(SCHEDULED)}"
            )
    if search.searcher == "grid" and search.samples > 1:
        lines.append(f"search.samples: given {search.samples}; the grid searcher runs each point once, allowed: 1")
    return lines


def _check_distribution(distribution: Mapping[str, list[Any]], searcher: str) -> list[str]:
    if len(distribution) != 1 or next(iter(distribution)) not in KINDS:
        return [f"given {dict(distribution)}; allowed: exactly one of {', '.join(KINDS)} with a list"]
    kind, values = next(iter(distribution.items()))
    if kind in ("grid", "choice"):
        return [] if values else [f"{kind} has no values"]
    if searcher == "grid":
        return [f"given {kind}; the grid searcher needs 'grid' with a list of values"]
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(values) != 2 or len(numbers) != 2 or not numbers[0] < numbers[1]:
        return [f"given {kind}: {values}; allowed: two numbers, the lower first"]
    if kind == "loguniform" and numbers[0] <= 0:
        return [f"given {kind}: {values}; both have to be above 0"]
    if kind == "int" and not all(isinstance(v, int) for v in values):
        return [f"given {kind}: {values}; both have to be whole numbers"]
    return []


def corners(space: Mapping[str, Mapping[str, list[Any]]]) -> Iterator[dict[str, Any]]:
    """Yield settings that together touch every listed value and both ends of every range.

    One key varies at a time, the others keep their first value: enough to find a value that is not allowed.
    """
    if not space:
        return
    values = {key: next(iter(distribution.values())) for key, distribution in space.items()}
    first = {key: options[0] for key, options in values.items()}
    yield first
    for key, options in values.items():
        for option in options[1:]:
            yield {**first, key: option}


def grid_points(space: Mapping[str, Mapping[str, list[Any]]]) -> list[dict[str, Any]]:
    """Return all combinations of a space of lists."""
    keys = list(space)
    return [
        dict(zip(keys, values, strict=True))
        for values in itertools.product(*(next(iter(space[key].values())) for key in keys))
    ]
