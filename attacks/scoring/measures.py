"""The scores per victim by name, and which direction of each is a leak."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean

from fedveil.fl.errors import unknown_name
from fedveil.fl.messages import PrivacyRecord


@dataclass(frozen=True)
class PrivacyMetric:
    """A score per victim, and which direction is a leak.

    Attributes:
        name: the last part of ``attack/<label>/<metric>``.
        ways: the number of one record; None where the audit lacked a part that it takes. Where an attack has several ways to
            the same end, the one that finds most over all records counts for each of them.
        leakiest: `min` or `max`, whichever finds the most private information.
        headline: also reported as ``privacy/<metric>``, the worst case over attacks.
        interval: its 95 % interval over victims is reported beside it, as ``privacy/<metric>_low`` and ``_high``.
    """

    name: str
    ways: tuple[Callable[[PrivacyRecord], float | None], ...]
    leakiest: Callable[[Iterable[float]], float]
    headline: bool = True
    interval: bool = False

    def scores(self, records: Iterable[PrivacyRecord]) -> list[tuple[PrivacyRecord, float]]:
        """Return those of one attack's records that have a number, each with it."""
        kept = list(records)
        found = [[(r, value) for r in kept if (value := way(r)) is not None] for way in self.ways]
        means = {at: fmean(value for _, value in own) for at, own in enumerate(found) if own}
        if not means:
            return []
        leakiest = self.leakiest(means.values())
        return next(found[at] for at, mean in means.items() if mean == leakiest)

    def values(self, records: Iterable[PrivacyRecord]) -> list[float]:
        """Return the numbers of those of one attack's records that have one."""
        return [value for _, value in self.scores(records)]


def _share(holds: bool | None) -> float | None:
    return None if holds is None else float(holds)


def _class_read(record: PrivacyRecord) -> float | None:
    return None if record.attacker_label is None else float(record.attacker_label == record.label)


def _class_told_by_its_own(record: PrivacyRecord) -> float | None:
    return None if record.adaptive_label is None else float(record.adaptive_label == record.label)


def _nearest(record: PrivacyRecord) -> float | None:
    return _share(record.identified)


def _forward(record: PrivacyRecord) -> float | None:
    return _share(record.identified_forward)


METRICS = (
    PrivacyMetric("mse", (lambda r: r.mse,), min, interval=True),
    PrivacyMetric("psnr", (lambda r: r.psnr,), max),
    PrivacyMetric("ssim", (lambda r: r.ssim,), max),
    PrivacyMetric("attacker_accuracy", (_class_read,), max, interval=True),
    PrivacyMetric("adaptive_attacker_accuracy", (_class_told_by_its_own,), max, interval=True),
    PrivacyMetric("identification_rate", (_nearest, _forward), max, interval=True),
    PrivacyMetric("identification_nearest", (_nearest,), max, headline=False),
    PrivacyMetric("identification_forward", (_forward,), max, headline=False),
    PrivacyMetric("mse_to_perturbed", (lambda r: r.mse_to_perturbed,), min, headline=False),
    PrivacyMetric("misfit", (lambda r: r.misfit,), min, headline=False),
    PrivacyMetric("label_recovery", (lambda r: _share(r.label_recovered),), max, headline=False),
)


def metric_named(name: str) -> PrivacyMetric:
    """Return the metric of that name.

    Raises:
        FedveilError: there is none.
    """
    by_name = {metric.name: metric for metric in METRICS}
    if name not in by_name:
        raise unknown_name("privacy metric", name, by_name)
    return by_name[name]
