"""95 % bootstrap intervals: of a mean over victims, and of the difference of two defences on the same victims."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedveil.attacks.scoring.measures import metric_named
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import PrivacyRecord
from fedveil.fl.seeding import numpy_stream

FEW = 10
"""Values below which the bootstrap is not trusted."""

_DRAWS_AT_ONCE = 2**22
_ROUNDING = 1e-9

Unit = TypeVar("Unit", bound=Hashable)


class Interval(NamedTuple):
    """A mean with its 95 % interval; ``low`` and ``high`` are None where a single value tells nothing of the spread."""

    mean: float
    low: float | None
    high: float | None


class _Audit(NamedTuple):
    """Where one score was taken: in two trials to be compared, the same audits must occur."""

    seed: int
    victim: int
    round: int


def mean_ci(values: Sequence[float], *, seed: int = 0, resamples: int = 2000) -> Interval:
    """Return the mean of ``values`` and its 95 % interval (Efron 1987, bias-corrected and accelerated bootstrap).

    Fewer than `FEW` values get Student's t interval, since the bootstrap's is far too narrow there; its low end is not
    below 0 where no value is. Values that are all the same have an interval of no width.

    Args:
        values: one per independent unit; average repeated measurements of one victim first.
        seed: fixes the resamples.
        resamples: how many.

    Raises:
        FedveilError: there are no values.
    """
    if not len(values):
        raise FedveilError("confidence interval: needs at least one value, got none")
    sample = np.asarray(values, dtype=np.float64)
    mean = float(sample.mean())
    if len(sample) == 1:
        return Interval(mean, None, None)
    if np.ptp(sample) <= _ROUNDING * np.abs(sample).max():  # the acceleration is 0 / 0 there
        return Interval(mean, mean, mean)
    if len(sample) < FEW:
        return _student(sample)
    from scipy.stats import bootstrap  # takes seconds to load

    found = bootstrap(
        (sample,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, _DRAWS_AT_ONCE // len(sample)),
        vectorized=True,
        method="BCa",
        rng=numpy_stream(seed, "bootstrap"),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high))


def _student(sample: NDArray[np.float64]) -> Interval:
    from scipy.stats import t

    mean = float(sample.mean())
    half = float(t.ppf(0.975, len(sample) - 1) * sample.std(ddof=1) / np.sqrt(len(sample)))
    low = mean - half
    return Interval(mean, max(0.0, low) if sample.min() >= 0 else low, mean + half)


def paired_difference_of(
    values_a: Mapping[Unit, float], values_b: Mapping[Unit, float], *, seed: int = 0, resamples: int = 2000
) -> Interval:
    """Return the mean of a minus b, paired unit by unit, with its 95 % interval over the units.

    Args:
        values_a: by independent unit, for example by (seed, victim); see `per_victim`.
        values_b: of the same units.
        seed: fixes the resamples.
        resamples: how many.

    Raises:
        FedveilError: the units differ, or there are none.
    """
    _check_pairs(values_a, values_b, "units")
    return mean_ci([values_a[unit] - values_b[unit] for unit in values_a], seed=seed, resamples=resamples)


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
    _check_pairs(a, b, "victims, rounds and seeds")
    return paired_difference_of(_over_rounds(a), _over_rounds(b), seed=seed, resamples=resamples)


def per_victim(records: Sequence[PrivacyRecord], metric: str) -> dict[tuple[int, int], float]:
    """Return ``metric`` by (seed, victim), averaged over that victim's rounds.

    Args:
        records: of one attack under one threat model, of any number of trial seeds.
        metric: a name in `METRICS`; records that lack it are passed over.

    Raises:
        FedveilError: a victim occurs twice in a round, or there is no such metric.
    """
    return _over_rounds(_values(records, metric))


def _values(records: Sequence[PrivacyRecord], metric: str) -> dict[_Audit, float]:
    found = [(_Audit(r.seed, r.victim, r.round), score) for r, score in metric_named(metric).scores(records)]
    values = dict(found)
    if len(values) < len(found):
        raise FedveilError(
            "paired difference: a victim occurs twice in a round; pass the records of one attack under one threat model"
        )
    return values


def _over_rounds(values: Mapping[_Audit, float]) -> dict[tuple[int, int], float]:
    rounds: dict[tuple[int, int], list[float]] = defaultdict(list)
    for audit in sorted(values):
        rounds[audit.seed, audit.victim].append(values[audit])
    return {unit: fmean(scores) for unit, scores in rounds.items()}


def _check_pairs(a: Mapping[Unit, float], b: Mapping[Unit, float], what: str) -> None:
    if a.keys() != b.keys():
        raise FedveilError(
            f"paired difference: both sides need the same {what}; "
            f"{len(a.keys() - b.keys())} only in the first, {len(b.keys() - a.keys())} only in the second"
        )
