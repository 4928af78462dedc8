"""A trial's records folded into the scalars that MLflow, reports and tests share."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from fedveil.attacks.scoring.measures import METRICS, PrivacyMetric, metric_named
from fedveil.attacks.scoring.quality import JudgeQuality
from fedveil.attacks.scoring.statistics import Interval, mean_ci
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import PrivacyRecord, ThreatModel

BASELINE_ATTACK = "baseline"
"""The attack without an update: logged, but no part of the worst case. It measures the data, not a leak."""


def summarise(
    records: Sequence[PrivacyRecord],
    *,
    adaptive: frozenset[str],
    judge: JudgeQuality | None,
    training: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Return the privacy scalars of one trial. What was not measured has no name there; nothing is ever NaN.

    ``attack/<label>/<metric>`` is the mean over victims at that attack's leakiest audit (round and threat
    model; each metric may have another one). ``privacy/<metric>`` is the leakiest attack's (`headline_attack`),
    `BASELINE_ATTACK` aside; these names are missing where no other attack ran. ``attacker_accuracy`` is missing
    too where no class is read, or by a judge that is not `JudgeQuality.fit`.

    ``privacy/mse_low`` and ``privacy/mse_high`` are the 95 % interval of ``privacy/mse`` over victims, from two
    victims on, and likewise for the shares of victims whose class was read or who were identified. An attack's
    ``identification_rate`` is the better of ``identification_nearest`` and ``identification_forward``.
    ``privacy/judge_accuracy`` is that of the judge on untouched originals, ``privacy/chance_accuracy`` that of the
    best guess without an update: 1 / k where the victims are balanced over the k classes (none has two more than
    another), else the share of the commonest. ``privacy/trained_mse`` and ``privacy/baseline_mse`` are means over
    audited victims, and ``privacy/complete`` is 1 if an adaptive attack ran, else 0.

    Args:
        records: of one trial, in any order.
        adaptive: the labels of the attacks that count as adaptive.
        judge: how well the judge reads untouched originals; None without one.
        training: how the attackers' training ended, as ``attack/<label>/<metric>``; kept for the attacks with records.

    Raises:
        FedveilError: there are no records.
    """
    if not records:
        raise FedveilError("audit: no attack left a record, so there is nothing to summarise")
    scalars: dict[str, float] = {}
    for metric in METRICS:
        if metric.name == "attacker_accuracy" and not (judge and judge.fit):
            continue
        means = {attack: fmean(metric.values(own)) for attack, own in _leakiest_audits(records, metric).items()}
        scalars |= {f"attack/{attack}/{metric.name}": mean for attack, mean in means.items()}
        means.pop(BASELINE_ATTACK, None)
        if metric.headline and means:
            scalars[f"privacy/{metric.name}"] = metric.leakiest(means.values())
            ends = headline_interval(records, metric.name) if metric.interval else None
            if ends is not None and ends.low is not None and ends.high is not None:
                scalars |= {f"privacy/{metric.name}_low": ends.low, f"privacy/{metric.name}_high": ends.high}

    # each audited victim once, however many attacks it met
    audited = {(r.round, r.client, r.victim): r for r in records}.values()
    trained = [r.trained_mse for r in audited if r.trained_mse is not None]
    baseline = [r.baseline_mse for r in audited if r.baseline_mse is not None]
    scalars |= {"privacy/trained_mse": fmean(trained)} if trained else {}
    scalars |= {"privacy/baseline_mse": fmean(baseline)} if baseline else {}
    if judge:
        scalars["privacy/judge_accuracy"] = judge.accuracy
        scalars["privacy/chance_accuracy"] = _chance({r.victim: r.label for r in audited}.values(), judge.classes)
    ran = {record.attack for record in records}
    scalars |= {name: value for name, value in (training or {}).items() if name.split("/")[1] in ran}
    scalars["privacy/complete"] = float(any(r.attack in adaptive for r in records))
    return scalars


def headline_records(records: Sequence[PrivacyRecord], metric: str) -> list[PrivacyRecord]:
    """Return the records behind ``privacy/<metric>``: of the leakiest attack, at its leakiest audit.

    Args:
        records: of one trial.
        metric: a name in `METRICS`.

    Raises:
        FedveilError: there is no such metric, or no attack but the baseline has it.
    """
    known = metric_named(metric)
    audits = [audit for attack, audit in _leakiest_audits(records, known).items() if attack != BASELINE_ATTACK]
    if not audits:
        raise FedveilError(f"audit: no attack on an update left a score of {metric}")
    return _leakiest(audits, known)


def headline_attack(records: Sequence[PrivacyRecord], metric: str) -> str:
    """Return the label of the attack behind ``privacy/<metric>``; see `headline_records`."""
    return headline_records(records, metric)[0].attack


def headline_interval(records: Sequence[PrivacyRecord], metric: str) -> Interval:
    """Return ``privacy/<metric>`` with its 95 % interval over victims; see `headline_records`."""
    return mean_ci(metric_named(metric).values(headline_records(records, metric)))


def _leakiest_audits(records: Sequence[PrivacyRecord], metric: PrivacyMetric) -> dict[str, list[PrivacyRecord]]:
    """Return, by attack, the records that have ``metric`` of that attack's leakiest audit."""
    audits: dict[tuple[str, int, ThreatModel], list[PrivacyRecord]] = defaultdict(list)
    for record in records:
        if metric.scores([record]):
            audits[record.attack, record.round, record.threat_model].append(record)
    by_attack: dict[str, list[list[PrivacyRecord]]] = defaultdict(list)
    for (attack, _, _), audit in audits.items():
        by_attack[attack].append(audit)
    return {attack: _leakiest(own, metric) for attack, own in by_attack.items()}


def _leakiest(audits: Sequence[list[PrivacyRecord]], metric: PrivacyMetric) -> list[PrivacyRecord]:
    means = [fmean(metric.values(audit)) for audit in audits]
    return audits[means.index(metric.leakiest(means))]


def _chance(labels: Iterable[int], classes: int) -> float:
    counts = Counter(labels)
    fewest = min(counts.values()) if len(counts) == classes else 0
    most = max(counts.values())
    return 1 / classes if most - fewest <= 1 else most / counts.total()
