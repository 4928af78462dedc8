"""How much an attacker was granted: tiers, from the update alone to the very images that a client trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

from fedveil.attacks.scoring import BASELINE_ATTACK
from fedveil.fl.messages import PrivacyRecord, ThreatModel
from fedveil.orchestrator.report.groups import TrialGroup


class Tier(StrEnum):
    """What an attacker knows of the protection, ascending."""

    UPDATE = "update"
    ALGORITHM = "algorithm"
    MODULES = "modules"
    TRAINED_IMAGES = "trained images"


MEANINGS: Mapping[Tier, str] = {
    Tier.UPDATE: "holds what a client sent, and knows nothing of the protection",
    Tier.ALGORITHM: "knows the protection's code and settings as well",
    Tier.MODULES: "has stolen what the client's protection has learnt as well",
    Tier.TRAINED_IMAGES: "is handed the very images that the client trained on, as if every inversion were perfect",
}


def tier_of(granted: ThreatModel) -> Tier:
    """Return the highest tier that a threat model reaches."""
    if granted.trained_images:
        return Tier.TRAINED_IMAGES
    if granted.defense_modules:
        return Tier.MODULES
    return Tier.ALGORITHM if granted.defense_algorithm else Tier.UPDATE


def granted_to(records: Iterable[PrivacyRecord]) -> dict[str, ThreatModel]:
    """Return what each attack on an update was granted, by its label, the least informed first.

    Where trials granted it different things, the most of them counts.
    """
    found: dict[str, ThreatModel] = {}
    for record in records:
        if record.attack != BASELINE_ATTACK:
            known = found.setdefault(record.attack, record.threat_model)
            if known.lacks(record.threat_model):
                found[record.attack] = record.threat_model
    order = list(Tier)
    return dict(sorted(found.items(), key=lambda item: order.index(tier_of(item[1]))))


def errors_by_tier(group: TrialGroup, granted: Mapping[str, ThreatModel]) -> dict[Tier, tuple[float, str]]:
    """Return, by tier, the error of the attack that came nearest, and its label; tiers without an attack are missing.

    Args:
        group: a setting.
        granted: see `granted_to`.
    """
    nearest: dict[Tier, tuple[float, str]] = {}
    for label, threat_model in granted.items():
        error = group.metrics.get(f"attack/{label}/mse")
        if error is not None:
            tier = tier_of(threat_model)
            nearest[tier] = min(nearest.get(tier, (error, label)), (error, label))
    return nearest
