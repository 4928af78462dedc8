"""A trial's records folded into the scalars that MLflow, reports and tests share."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import PrivacyRecord, ThreatModel

BASELINE_ATTACK = "baseline"
"""The attack without an update: logged, but no part of the worst case. It measures the data, not a leak."""


@dataclass(frozen=True)
class PrivacyMetric:
    """A score per victim, and which direction is a leak.

    Attributes:
        name: the last part of ``attack/<name>/<metric>``.
        value: the number of one record.
        leakiest: `min` or `max`, whichever finds the most private information.
        headline: also reported as ``privacy/<metric>``, the worst case over attacks.
    """

    name: str
    value: Callable[[PrivacyRecord], float]
    leakiest: Callable[[Iterable[float]], float]
    headline: bool = True


METRICS = (
    PrivacyMetric("mse", lambda r: r.mse, min),
    PrivacyMetric("psnr", lambda r: r.psnr, max),
    PrivacyMetric("ssim", lambda r: r.ssim, max),
    PrivacyMetric("attacker_accuracy", lambda r: float(r.attacker_label == r.label), max),
    PrivacyMetric("identification_rate", lambda r: float(r.identified), max),
    PrivacyMetric("mse_to_perturbed", lambda r: r.mse_to_perturbed, min, headline=False),
    PrivacyMetric("label_recovery", lambda r: float(r.label_recovered), max, headline=False),
)


def summarise(records: Sequence[PrivacyRecord], *, adaptive: frozenset[str]) -> dict[str, float]:
    """Return the privacy scalars of one trial.

    ``attack/<name>/<metric>`` is the mean over victims at that attack's leakiest audit (round and threat
    model; each metric may have another one). ``privacy/<metric>`` is the leakiest attack's, `BASELINE_ATTACK`
    aside; these names are missing where no other attack ran. ``privacy/trained_mse`` and
    ``privacy/baseline_mse`` are means over audited victims, ``privacy/chance_accuracy`` is the share of the
    commonest class among the victims, and ``privacy/complete`` is 1 if an adaptive attack ran, else 0.

    Args:
        records: of one trial, in any order.
        adaptive: the names of the attacks that count as adaptive.

    Raises:
        FedveilError: there are no records.
    """
    if not records:
        raise FedveilError("audit: no attack left a record, so there is nothing to summarise")
    scalars = {}
    audits = _by_audit(records)
    for metric in METRICS:
        per_attack: dict[str, float] = {}
        for attack, groups in audits.items():
            per_attack[attack] = metric.leakiest(fmean(map(metric.value, group)) for group in groups)
            scalars[f"attack/{attack}/{metric.name}"] = per_attack[attack]
        per_attack.pop(BASELINE_ATTACK, None)
        if metric.headline and per_attack:
            scalars[f"privacy/{metric.name}"] = metric.leakiest(per_attack.values())

    # each audited victim once, however many attacks it met
    victims = {(r.round, r.client, r.victim): r for r in records}.values()
    classes = Counter({r.victim: r.label for r in victims}.values())
    scalars["privacy/chance_accuracy"] = max(classes.values()) / classes.total()
    scalars["privacy/trained_mse"] = fmean(r.trained_mse for r in victims)
    scalars["privacy/baseline_mse"] = fmean(r.baseline_mse for r in victims)
    scalars["privacy/complete"] = float(not adaptive.isdisjoint(audits))
    return scalars


def _by_audit(records: Sequence[PrivacyRecord]) -> dict[str, list[list[PrivacyRecord]]]:
    """Group by attack, and within it by round and threat model."""
    groups: dict[tuple[str, int, ThreatModel], list[PrivacyRecord]] = defaultdict(list)
    for record in records:
        groups[record.attack, record.round, record.threat_model].append(record)
    by_attack: dict[str, list[list[PrivacyRecord]]] = defaultdict(list)
    for (attack, _, _), group in groups.items():
        by_attack[attack].append(group)
    return by_attack
