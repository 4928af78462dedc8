"""Bootstrap confidence intervals: of a mean, and of the difference of two defences on the same victims."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from fedveil.attacks.scoring.summary import METRICS
from fedveil.fl.errors import FedveilError, unknown_name
from fedveil.fl.messages import PrivacyRecord
from fedveil.fl.seeding import numpy_stream


class Interval(NamedTuple):
    """A mean with its 95 % percentile-bootstrap interval."""

    mean: float
    low: float
    high: float


class _Audit(NamedTuple):
    """Where one score was taken: in two trials to be compared, the same audits must occur."""

    seed: int
    victim: int
    round: int


def mean_ci(values: Sequence[float], *, seed: int, resamples: int = 2000) -> Interval:
    """Return the mean of ``values`` and its 95 % interval (Efron 1979, percentile bootstrap).

    Args:
        values: one per independent unit; average repeated measurements of one victim first.
        seed: fixes the resamples.
        resamples: how many.

    Raises:
        FedveilError: there are no values.
    """
    if not values:
        raise FedveilError("confidence interval: needs at least one value, got none")
    sample = np.asarray(values, dtype=np.float64)
    stream = numpy_stream(seed, "bootstrap")
    means = [sample[stream.integers(len(sample), size=len(sample))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(sample.mean()), float(low), float(high))


def paired_difference(
    records_a: Sequence[PrivacyRecord],
    records_b: Sequence[PrivacyRecord],
    metric: str,
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> Interval:
    """Return the mean of ``metric`` under a minus that under b, paired per victim, with its 95 % interval.

    Scores of the same (seed, victim, round) are subtracted; the differences of one victim are averaged over
    its rounds and victims are resampled, because rounds of one victim are not independent.

    Args:
        records_a: of one attack on one defence, of any number of trial seeds.
        records_b: the same of the defence to compare with.
        metric: a name in `METRICS`.
        seed: fixes the resamples.
        resamples: how many.

    Raises:
        FedveilError: the victims, rounds or seeds differ, a side holds a victim twice, or there is no such
            metric.
    """
    a, b = _values(records_a, metric), _values(records_b, metric)
    if a.keys() != b.keys():
        raise FedveilError(
            "paired difference: both sides need the same victims, rounds and seeds; "
            f"{len(a.keys() - b.keys())} only in the first, {len(b.keys() - a.keys())} only in the second"
        )
    differences: dict[tuple[int, int], list[float]] = defaultdict(list)
    for audit in sorted(a):
        differences[audit.seed, audit.victim].append(a[audit] - b[audit])
    return mean_ci([fmean(rounds) for rounds in differences.values()], seed=seed, resamples=resamples)


def _values(records: Sequence[PrivacyRecord], metric: str) -> dict[_Audit, float]:
    by_name = {known.name: known.value for known in METRICS}
    if metric not in by_name:
        raise unknown_name("privacy metric", metric, by_name)
    values = {_Audit(r.seed, r.victim, r.round): by_name[metric](r) for r in records}
    if len(values) < len(records):
        raise FedveilError(
            "paired difference: a victim occurs twice in a round; pass the records of one attack under one threat model"
        )
    return values
