"""An audit of updates from end to end: records, scores and reconstructions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from worlds import ADAPTIVE, BOUND, CPU, INVERSION, LATENT, MODULES, MakeWorld

from fedveil.attacks import Adaptive, Attack, Baseline, Earlier, InvertingGradients, Knowledge, Observation
from fedveil.attacks.audit.report import AuditReport
from fedveil.attacks.audit.updates import audit_updates
from fedveil.defense import Defense, NoDefense, PixelNoise, TopK, UpdateNoise
from fedveil.defense.stack import Stack
from fedveil.fl.messages import Reconstruction, ThreatModel

DEFENSES: list[Defense[Any]] = [NoDefense(), PixelNoise(), TopK(), UpdateNoise(), LATENT]


@pytest.mark.parametrize("defense", DEFENSES, ids=lambda d: d.name)
def test_every_record_has_its_yardsticks_and_threat_model(defense: Defense[Any], make_world: MakeWorld) -> None:
    attacks: list[Attack] = [Baseline(), INVERSION, ADAPTIVE, MODULES]
    if defense.name not in ("top_k", "update_noise"):
        attacks.append(BOUND)
    world = make_world(defense, attacks)
    report = world.audit(round=4)
    by_attack = {attack.name: [r for r in report.records if r.attack == attack.name] for attack in attacks}
    assert sum(len(records) for records in by_attack.values()) == len(report.records) == 3 * len(attacks)
    for attack in attacks:
        records = by_attack[attack.name]
        assert [(r.victim, r.client, r.round, r.seed) for r in records] == [(0, 0, 4, 0), (1, 1, 4, 0), (2, 0, 4, 0)]
        assert all(r.threat_model == replace(attack.needs, labels=True) for r in records)
        # Told the class, the baseline shows what it was told: no class is read from it.
        assert all((r.attacker_label is None) == (attack.name == "baseline") for r in records)
    for record in report.records:
        assert record.trained_mse is not None
        assert record.baseline_mse is not None
        assert record.mse_to_perturbed is not None
        scores = (record.mse, record.mse_to_perturbed, record.trained_mse, record.baseline_mse, record.psnr)
        assert all(math.isfinite(score) for score in (*scores, record.ssim))
        assert record.baseline_mse > 0
        assert record.label_recovered
        assert (record.trained_mse > 0) == (defense.name in ("pixel_noise", "latent_autoencoder"))
        # Only the plain inversion looks for what was trained on, and no image explains an update that the defence changed.
        plain = record.attack == "inverting_gradients" and defense.name not in ("top_k", "update_noise")
        assert (record.misfit is not None and record.misfit >= 0) == plain
    # The truth about a victim is the same for every attack.
    for name in ("label", "trained_mse", "baseline_mse"):
        columns = [[getattr(r, name) for r in records] for records in by_attack.values()]
        assert all(column == columns[0] for column in columns)
    assert [r.mse for r in by_attack["baseline"]] == pytest.approx([r.baseline_mse for r in by_attack["baseline"]])

    assert report.victims == (0, 1, 2)
    assert report.adaptive == {attack.name for attack in attacks if attack.adaptive}
    assert {*report.reconstructions} == {*by_attack}
    assert report.originals is not None
    assert torch.equal(report.originals, torch.cat([batch.originals for batch in world.victims]))
    errors = (report.reconstructions["adaptive"] - report.originals).square().mean((1, 2, 3)).tolist()
    assert errors == pytest.approx([r.mse for r in by_attack["adaptive"]], rel=1e-4)


def test_a_perfect_inversion_of_an_undefended_client_has_no_error(make_world: MakeWorld) -> None:
    for record in make_world(NoDefense(), [BOUND]).audit().records:
        assert (record.mse, record.mse_to_perturbed, record.trained_mse) == (0.0, 0.0, 0.0)
        assert (record.psnr, record.identified) == (100.0, True)


@dataclass(frozen=True, kw_only=True)
class Echo(Attack):
    """Answers with the images that the client trained on."""

    name: ClassVar[str] = "echo"
    needs: ClassVar[ThreatModel] = ThreatModel(labels=False, trained_images=True)

    def run(self, observations: Sequence[Observation], knowledge: Knowledge, earlier: Earlier) -> list[Reconstruction]:
        return [Reconstruction(o.trained_images, torch.zeros(1, dtype=torch.int64), 0.0) for o in observations]  # type: ignore[arg-type]


def test_scores_are_against_the_original_not_the_perturbed_image(make_world: MakeWorld) -> None:
    for record in make_world(PixelNoise(strength=0.3), [Echo()]).audit().records:
        assert record.mse_to_perturbed == 0.0
        assert record.trained_mse is not None
        assert record.mse == record.trained_mse > 0.01
        assert record.label_recovered == (record.label == 0)


@pytest.mark.parametrize("attack", [ADAPTIVE, MODULES], ids=lambda a: a.name)
def test_against_nothing_the_adaptive_attack_is_the_plain_one(attack: Adaptive, make_world: MakeWorld) -> None:
    """What it learns on victims of its own aside, which the plain one has not."""
    attack = replace(attack, calibration=0)
    records = make_world(NoDefense(), [INVERSION, attack]).audit().records
    plain = [
        replace(r, attack="", threat_model=ThreatModel(), misfit=None) for r in records if r.attack == INVERSION.name
    ]
    adaptive = [replace(r, attack="", threat_model=ThreatModel()) for r in records if r.attack == attack.name]
    assert len(plain) == 3
    # But for the class that a classifier of its own reads, and for the gallery, which it compares with the update.
    assert {r.adaptive_label for r in adaptive} <= {0, 1}
    assert all(r.identified_forward for r in adaptive)
    assert [replace(r, adaptive_label=None, identified_forward=None) for r in adaptive] == plain


@pytest.mark.parametrize(
    ("defense", "bounded"),
    [
        (NoDefense(), True),
        (PixelNoise(), True),
        (TopK(keep=0.1), False),
        (Stack(parts=(PixelNoise(), UpdateNoise())), False),
    ],
    ids=["none", "data", "update", "data-and-update"],
)
def test_the_bound_is_for_defences_of_the_data_alone(
    defense: Defense[Any], bounded: bool, make_world: MakeWorld
) -> None:
    report = make_world(defense, [INVERSION, BOUND]).audit()
    ran = {INVERSION.name, *([BOUND.name] if bounded else [])}
    assert {r.attack for r in report.records} == ran == {*report.reconstructions}
    assert report.adaptive == ran - {INVERSION.name}


def test_two_attacks_of_one_name_are_told_apart(make_world: MakeWorld) -> None:
    report = make_world(PixelNoise(), [InvertingGradients(steps=1), InvertingGradients(steps=9), INVERSION]).audit()
    labels = ["inverting_gradients", "inverting_gradients_2", "inverting_gradients_3"]
    assert [r.attack for r in report.records[::3]] == labels == [*report.reconstructions]
    first, second = report.reconstructions[labels[0]], report.reconstructions[labels[1]]
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("defense", "attacks"),
    [(PixelNoise(), [INVERSION, ADAPTIVE]), (Stack(parts=(LATENT, UpdateNoise())), [MODULES])],
    ids=["data", "data-and-update"],
)
def test_audits_in_parts_give_the_same_reconstructions(
    defense: Defense[Any], attacks: list[Attack], make_world: MakeWorld
) -> None:
    world = make_world(defense, attacks, victims=4)
    whole = world.audit()
    parts = AuditReport.merged([replace(world, victims=(batch,)).audit() for batch in world.victims])
    assert whole.victims == parts.victims
    assert whole.trained is not None
    assert parts.trained is not None
    assert torch.equal(whole.trained, parts.trained)
    for label, images in whole.reconstructions.items():
        torch.testing.assert_close(images, parts.reconstructions[label], atol=1e-4, rtol=0)
    key = {(r.attack, r.victim): r.mse for r in parts.records}
    for record in whole.records:
        assert record.mse == pytest.approx(key[record.attack, record.victim], abs=1e-4)


def test_an_audit_is_a_function_of_what_it_is_given(make_world: MakeWorld) -> None:
    world = make_world(PixelNoise(), [INVERSION])
    first = world.audit()
    torch.rand(3)
    assert world.audit().records == first.records
    # Another round, other noise.
    assert not {r.trained_mse for r in world.audit(round=1).records} & {r.trained_mse for r in first.records}


def test_batches_are_matched_one_to_one(make_world: MakeWorld) -> None:
    report = make_world(NoDefense(), [Turned()], victims=6, batch_size=3).audit()
    assert [r.victim for r in report.records] == list(range(6))
    assert [r.client for r in report.records] == [0, 0, 0, 1, 1, 1]
    assert all(r.mse == 0.0 for r in report.records)
    assert report.originals is not None
    assert torch.equal(report.reconstructions["turned"], report.originals)


@dataclass(frozen=True, kw_only=True)
class Turned(Echo):
    """Finds the images in another order."""

    name: ClassVar[str] = "turned"

    def run(self, observations: Sequence[Observation], knowledge: Knowledge, earlier: Earlier) -> list[Reconstruction]:
        return [Reconstruction(o.trained_images.flip(0), o.labels.flip(0), 0.0) for o in observations]  # type: ignore[union-attr]


def test_without_the_truth_it_reconstructs_and_scores_nothing(make_world: MakeWorld) -> None:
    world = make_world(PixelNoise(), [INVERSION, ADAPTIVE], labels_known=False)
    seen = world.captured()
    scored = world.audit()
    report = audit_updates(world.attacker, [o for o, _ in seen], None, scorer=None, device=CPU)
    assert (report.records, report.originals, report.trained, report.judge) == ((), None, None, None)
    assert report.victims == (0, 1, 2)
    assert report.adaptive == {"adaptive"}
    for label, images in report.reconstructions.items():
        assert torch.equal(images, scored.reconstructions[label])


def test_labels_of_batches_are_recovered_from_the_update(make_world: MakeWorld) -> None:
    records = make_world(NoDefense(), [INVERSION, ADAPTIVE], batch_size=3, labels_known=False).audit().records
    assert {r.attack for r in records} == {"inverting_gradients", "adaptive"}
    assert all(r.label_recovered for r in records)
