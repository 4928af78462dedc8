"""The scores per victim by name, and which direction of each is a leak."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fedveil.fl.errors import unknown_name
from fedveil.fl.messages import PrivacyRecord


@dataclass(frozen=True)
class PrivacyMetric:
    """A score per victim, and which direction is a leak.

    Attributes:
        name: the last part of ``attack/<label>/<metric>``.
        value: the number of one record; None where the audit lacked a part that it takes.
        leakiest: `min` or `max`, whichever finds the most private information.
        headline: also reported as ``privacy/<metric>``, the worst case over attacks.
    """

    name: str
    value: Callable[[PrivacyRecord], float | None]
    leakiest: Callable[[Iterable[float]], float]
    headline: bool = True

    def values(self, records: Iterable[PrivacyRecord]) -> list[float]:
        """Return the numbers of those records that have one."""
        return [value for record in records if (value := self.value(record)) is not None]


def _class_read(record: PrivacyRecord) -> float | None:
    return None if record.attacker_label is None else float(record.attacker_label == record.label)


def _identified(record: PrivacyRecord) -> float | None:
    return None if record.identified is None else float(record.identified)


METRICS = (
    PrivacyMetric("mse", lambda r: r.mse, min),
    PrivacyMetric("psnr", lambda r: r.psnr, max),
    PrivacyMetric("ssim", lambda r: r.ssim, max),
    PrivacyMetric("attacker_accuracy", _class_read, max),
    PrivacyMetric("identification_rate", _identified, max),
    PrivacyMetric("mse_to_perturbed", lambda r: r.mse_to_perturbed, min, headline=False),
    PrivacyMetric("label_recovery", lambda r: float(r.label_recovered), max, headline=False),
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
