from __future__ import annotations

import pytest

from fedveil.fl.messages import PrivacyRecord, ThreatModel
from fedveil.orchestrator.report import TrialRow, group_seeds
from fedveil.orchestrator.report.tiers import MEANINGS, Tier, errors_by_tier, granted_to, tier_of

MODULES = ThreatModel(defense_algorithm=True, defense_modules=True)


def record(attack: str, threat_model: ThreatModel) -> PrivacyRecord:
    return PrivacyRecord(attack, threat_model, 0, 0, 0, 0, 0, mse=0.1, psnr=10.0, ssim=0.5, label_recovered=True)


@pytest.mark.parametrize(
    ("threat_model", "tier"),
    [
        (ThreatModel(), Tier.UPDATE),
        (ThreatModel(labels=False, auxiliary_data=True), Tier.UPDATE),
        (ThreatModel(defense_algorithm=True), Tier.ALGORITHM),
        (MODULES, Tier.MODULES),
        (ThreatModel(trained_images=True), Tier.TRAINED_IMAGES),
    ],
)
def test_the_highest_grant_is_the_tier(threat_model: ThreatModel, tier: Tier) -> None:
    assert tier_of(threat_model) is tier
    assert MEANINGS[tier]


def test_the_attack_without_an_update_has_no_tier_and_the_most_that_was_granted_counts() -> None:
    granted = granted_to(
        [
            record("b", MODULES),
            record("a", ThreatModel()),
            record("a", ThreatModel(auxiliary_data=True)),
            record("a", ThreatModel()),
            record("baseline", ThreatModel(auxiliary_data=True)),
        ]
    )
    assert list(granted.items()) == [("a", ThreatModel(auxiliary_data=True)), ("b", MODULES)]


def test_of_a_tier_the_attack_that_came_nearest_counts() -> None:
    metrics = {"attack/a/mse": 0.2, "attack/c/mse": 0.1, "attack/b/mse": 0.3}
    (group,) = group_seeds([TrialRow("t", "FINISHED", {}, metrics)])
    granted = {"a": ThreatModel(), "c": ThreatModel(), "b": MODULES, "absent": ThreatModel(trained_images=True)}
    assert errors_by_tier(group, granted) == {Tier.UPDATE: (0.1, "c"), Tier.MODULES: (0.3, "b")}
