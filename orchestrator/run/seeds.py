"""Repeating an experiment under several seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

from fedveil.orchestrator.config import Experiment


def one_per_seed(experiment: Experiment) -> list[Experiment]:
    """Return the experiment once for each of its seeds, in their order, each with that one seed alone."""
    seeds = experiment.seeds or [experiment.seed]
    return [experiment.model_copy(update={"seed": seed, "seeds": []}) for seed in seeds]


def seeded_name(name: str, seed: int, of: int) -> str:
    """Return the name of a setting's trial under a seed: with the seed only where there are several (``of``).

    >>> seeded_name("none", 2, of=1), seeded_name("none", 2, of=3)
    ('none', 'none-seed2')
    """
    return name if of == 1 else f"{name}-seed{seed}"


def mean_metrics(several: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return each metric's mean over those that have it.

    >>> mean_metrics([{"a": 1.0, "b": 5.0}, {"a": 2.0}])
    {'a': 1.5, 'b': 5.0}
    """
    values: defaultdict[str, list[float]] = defaultdict(list)
    for metrics in several:
        for name, value in metrics.items():
            values[name].append(value)
    return {name: fmean(own) for name, own in values.items()}
