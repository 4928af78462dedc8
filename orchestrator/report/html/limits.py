"""What the numbers do not say: what is not known in spite of them, and what was not tested at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedveil.fl.messages import PrivacyRecord, ThreatModel
from fedveil.orchestrator.metrics import fits
from fedveil.orchestrator.report.groups import TrialGroup
from fedveil.orchestrator.report.html.settings import Settings, values_of
from fedveil.orchestrator.report.html.words import called, counted, joined
from fedveil.orchestrator.report.tiers import Tier, tier_of

FEW_VICTIMS, FEW_SEEDS = 256, 3
"""Below these the page says that there are few: what this project asks of a published table."""


_SUMS = "secure_aggregation"
"""The defence under which what an audit attacks is a sum."""


def not_known(groups: Sequence[TrialGroup], records: Iterable[PrivacyRecord], *, failed: int, remark: str) -> list[str]:
    """Return what stays open in spite of the numbers.

    Args:
        groups: the settings.
        records: of all trials, as far as they are at hand.
        failed: trials that did not finish.
        remark: what has to be said of the federation itself; empty for nothing.
    """
    lines = [_NO_BOUND, _NO_LIKENESS, _about_sample(groups, records), _about_training(groups), _NO_SECRET]
    lines.append(f"What {counted(failed, 'trial')} would have shown that did not finish." if failed else "")
    lines.append(f"Whether joining pays at all. {remark}." if remark else "")
    return [line for line in lines if line]


_NO_BOUND = (
    "Whether a better attacker finds more. What came back is what these attacks made of the updates: none of them is a"
    " bound, and one that trains longer, or that nobody has thought of yet, may do better."
)
_NO_LIKENESS = (
    "Whether an error is small enough. It is a mean over the pixels: an image far off may still be recognised, and one"
    " near may lack the detail that matters. That is why the line-up stands beside it."
)
_NO_SECRET = (
    "Whether the diagnosis stays hidden: that is not what is protected. The class of an image can be read from an update,"
    " and from any image on which a model can still be trained."
)


def _about_sample(groups: Sequence[TrialGroup], records: Iterable[PrivacyRecord]) -> str:
    victims = {(one.seed, one.client, one.victim) for one in records}
    seeds = {str(row.params.get("seed")) for group in groups for row in group.members}
    clients = {(seed, client) for seed, client, _ in victims}
    parts = []
    if victims and len(victims) < FEW_VICTIMS:
        were = "was" if len(victims) == 1 else "were"
        parts.append(f"{counted(len(victims), 'image')} of {counted(len(clients), 'client')} {were} attacked")
    if 0 < len(seeds) < FEW_SEEDS:
        parts.append(f"each training was run {'once' if len(seeds) == 1 else 'twice'}")
    if not parts:
        return ""
    few = joined(parts)
    return (
        f"How far this holds for other images and trainings. {few[0].upper()}{few[1:]}; intervals of what came back are over"
        " the attacked images alone."
    )


def _about_training(groups: Sequence[TrialGroup]) -> str:
    """Name the settings against which an attacker's own network was still getting better when its training ended."""
    unfinished = [
        called(group)
        for group in groups
        if any(value < 1 for name, value in group.metrics.items() if fits(name, "attack/<attack>/inverse_flat"))
    ]
    if not unfinished:
        return ""
    return (
        "How much an attacker finds who trains to the end: against "
        f"{joined(dict.fromkeys(unfinished))} its own network was still getting better when its steps were used up."
    )


def not_tested(
    groups: Sequence[TrialGroup], granted: Mapping[str, ThreatModel], settings: Sequence[Settings]
) -> list[str]:
    """Return what was left out.

    Args:
        groups: the settings.
        granted: what each attack was granted, by its label.
        settings: the trials' configurations, as far as they were recorded.
    """
    tiers = {tier_of(threat_model) for threat_model in granted.values()}
    lines = []
    if granted and Tier.MODULES not in tiers:
        lines.append("An attacker who has stolen what a client's protection has learnt.")
    if granted and Tier.TRAINED_IMAGES not in tiers:
        lines.append(
            "An attacker who inverts the update perfectly, so that the protection alone stands before the image."
        )
    if not any("privacy/membership_auc" in group.metrics for group in groups):
        lines.append("Whether an image took part in the training at all (membership).")
    if values_of(settings, "audit.observations") == [1]:
        lines.append("An attacker who keeps several updates that a client made of the same image.")
    lines += [line for line in (_rounds(settings), _batches(settings)) if line]
    if not any(_SUMS in group.defense for group in groups):
        lines.append("A server that is shown nothing but the sum of many clients' updates (secure aggregation).")
    return [
        *lines,
        "A server that breaks the rules: one that sends out weights made to draw more out of the clients.",
        "What the finished model tells whoever uses it, and what can be learnt of a client as a whole.",
        "Protections outside of the clients' training, and all that is no image.",
    ]


def _rounds(settings: Sequence[Settings]) -> str:
    audited, all_rounds = values_of(settings, "audit.rounds"), values_of(settings, "fl.rounds")
    if len(audited) != 1 or len(all_rounds) != 1 or not isinstance(all_rounds[0], int):
        return ""
    words = "0, 1, middle and last" if audited[0] is None else joined(map(str, audited[0]))
    return (
        f"Updates of other rounds than {words}, of {all_rounds[0]} that are numbered from 0."
        if all_rounds[0] > 1
        else ""
    )


def _batches(settings: Sequence[Settings]) -> str:
    attacked, trained = values_of(settings, "audit.batch_size"), values_of(settings, "fl.batch_size")
    steps: list[Any] = values_of(settings, "audit.local_steps")
    if len(attacked) != 1 or len(trained) != 1 or len(steps) != 1 or attacked[0] >= trained[0]:
        return ""
    return (
        f"Updates of whole batches: those attacked were made of {counted(attacked[0], 'image')} in"
        f" {counted(steps[0], 'step')}, while clients train on {trained[0]} at a time. Fewer images give more away as a"
        " rule, so this errs on the careful side."
    )
