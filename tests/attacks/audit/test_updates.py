from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from fedveil.attacks import (
    Adaptive,
    AdaptiveModules,
    Attack,
    Baseline,
    Earlier,
    InverseTraining,
    InvertingGradients,
    Knowledge,
    Observation,
    TrainedImages,
)
from fedveil.attacks.adaptive.preparation import PreparationKey, preparation_key, prepare_attacker
from fedveil.attacks.audit.capture import capture, together
from fedveil.attacks.audit.report import AuditReport
from fedveil.attacks.audit.updates import Attacker, audit_updates
from fedveil.attacks.scoring import ClassMeanGuess, Gallery, Judge, Scorer, train_judge
from fedveil.attacks.scoring.victims import VictimBatch
from fedveil.attacks.target.model import target_model
from fedveil.defense import Defense, DefenseContext, LatentAutoencoder, NoDefense, PixelNoise, TopK, UpdateNoise
from fedveil.defense.base import PreparedDefense, TrainedOn
from fedveil.defense.stack import Stack
from fedveil.fl.data.images import Images
from fedveil.fl.messages import Reconstruction, ThreatModel, UpdateKind
from fedveil.fl.models import ModelSpec, build_model, init_model
from fedveil.fl.seeding import torch_stream
from fedveil.fl.training import LocalTraining

SPEC = ModelSpec("lenet", (1, 12, 12), 2, width=4)
CPU = torch.device("cpu")
TARGET = target_model(build_model(SPEC), image_shape=SPEC.image_shape, classes=SPEC.classes)
"""One for all tests: what is tried and traced for a classifier is kept with it."""
QUICK = InverseTraining(steps=2, batch_size=8, width=4)
INVERSION = InvertingGradients(steps=1)
ADAPTIVE = Adaptive(inversion=InvertingGradients(steps=1), inverse=QUICK)
MODULES = AdaptiveModules(inversion=InvertingGradients(steps=1), inverse=QUICK)
BOUND = TrainedImages(inverse=QUICK)
LATENT = LatentAutoencoder(steps=1, client_steps=1, public_steps=1, adversary_steps=1)
DEFENSES: list[Defense[Any]] = [NoDefense(), PixelNoise(), TopK(), UpdateNoise(), LATENT]

Blobs = Callable[..., Images]
MakeWorld = Callable[..., "World"]


@dataclass(frozen=True, eq=False)
class World:
    """Clients about to be audited, an attacker, and the truth."""

    shards: tuple[Images, ...]
    prepared: tuple[PreparedDefense, ...]
    attacker: Attacker
    victims: tuple[VictimBatch, ...]
    scorer: Scorer
    local_steps: int

    def captured(self, round: int = 0) -> list[tuple[Observation, VictimBatch]]:
        weights, training = init_model(SPEC, 0), LocalTraining(UpdateKind.DELTA, 1, 4, 0.05)
        return [
            capture(
                build_model(SPEC),
                weights,
                batch,
                self.prepared[batch.client],
                training,
                local_steps=self.local_steps,
                stream=torch_stream(0, "audit", round, batch.number),
            )
            for batch in self.victims
        ]

    def audit(self, round: int = 0) -> AuditReport:
        seen = self.captured(round)
        return audit_updates(
            self.attacker, [o for o, _ in seen], [b for _, b in seen], scorer=self.scorer, round=round, device=CPU
        )


@pytest.fixture(scope="session")
def judge(blobs: Blobs) -> Judge:
    return train_judge(blobs(12, 100, side=12), classes=2, seed=0, steps=2)


@pytest.fixture
def make_world(blobs: Blobs, judge: Judge) -> MakeWorld:
    def make(
        defense: Defense[Any],
        attacks: Sequence[Attack],
        *,
        victims: int = 3,
        batch_size: int = 1,
        clients: int = 2,
        labels_known: bool = True,
        local_steps: int = 1,
    ) -> World:
        public, auxiliary = blobs(12, 200, side=12), blobs(12, 100, side=12)
        shards = tuple(blobs(6, c, side=12) for c in range(clients))
        context = DefenseContext(public, SPEC, CPU, seed=0)
        learnt = defense.pretrain(context)
        prepared = tuple(defense.prepare(shard, context, learnt, client=c) for c, shard in enumerate(shards))
        batches = []
        for number in range(victims // batch_size):
            ids = tuple(range(number * batch_size, (number + 1) * batch_size))
            client, turn = number % clients, number // clients
            rows = torch.arange(turn * batch_size, (turn + 1) * batch_size)
            batches.append(VictimBatch(number, client, ids, shards[client].take(rows), gallery=ids))
        pixels = [batch.images.pixels for batch in batches]
        keys = {preparation_key(a, defense.trained_on, batch.client) for a in attacks for batch in batches} - {None}
        shadow = defense.shadow(auxiliary, replace(context, seed=5), learnt)
        attacker = Attacker(
            target=TARGET,
            attacks=tuple(attacks),
            auxiliary=auxiliary,
            preparations={
                key: prepare_attacker(
                    prepared[key.client or 0] if key.modules else shadow,
                    auxiliary,
                    key,
                    classes=SPEC.classes,
                    device=CPU,
                    stream=torch_stream(5, "inverse"),
                )
                for key in keys
                if key is not None
            },
            trained_on=defense.trained_on,
            labels_known=labels_known,
            seed=7,
        )
        scorer = Scorer(judge, Gallery(torch.cat(pixels)), ClassMeanGuess.of(auxiliary, classes=2), seed=0)
        return World(shards, prepared, attacker, tuple(batches), scorer, local_steps)

    return make


@dataclass(frozen=True, kw_only=True)
class Spy(Attack):
    """Keeps what it is handed and answers with grey."""

    name: ClassVar[str] = "spy"
    handed: ClassVar[list[tuple[list[Observation], Knowledge, Earlier]]] = []

    def run(self, observations: Sequence[Observation], knowledge: Knowledge, earlier: Earlier) -> list[Reconstruction]:
        self.handed.append((list(observations), knowledge, dict(earlier)))
        return [
            Reconstruction(torch.full((o.batch_size, 1, 12, 12), 0.5), torch.zeros(o.batch_size, dtype=torch.int64), 0)
            for o in observations
        ]


@dataclass(frozen=True, kw_only=True)
class AllSeeingSpy(Spy):
    """Is granted everything there is to grant."""

    name: ClassVar[str] = "all_seeing"
    needs: ClassVar[ThreatModel] = replace(TrainedImages.needs, labels=False)
    handed: ClassVar[list[tuple[list[Observation], Knowledge, Earlier]]] = []

    inverse: InverseTraining = QUICK


@dataclass(frozen=True, kw_only=True)
class PluginSpy(Spy):
    """Knows the defence, and has no inverse to configure."""

    needs: ClassVar[ThreatModel] = replace(TrainedImages.needs, labels=False)


@pytest.fixture(autouse=True)
def forget() -> None:
    Spy.handed.clear()
    AllSeeingSpy.handed.clear()


# Preparations


@pytest.mark.parametrize(
    ("attack", "trained_on", "key"),
    [
        (Baseline(), TrainedOn.CLIENT, None),
        (InvertingGradients(), TrainedOn.CLIENT, None),
        (ADAPTIVE, TrainedOn.CLIENT, PreparationKey(False, None, QUICK)),
        (ADAPTIVE, TrainedOn.NOTHING, PreparationKey(False, None, QUICK)),
        (MODULES, TrainedOn.NOTHING, PreparationKey(False, None, QUICK)),
        (ADAPTIVE, TrainedOn.PUBLIC, PreparationKey(True, None, QUICK)),
        (MODULES, TrainedOn.PUBLIC, PreparationKey(True, None, QUICK)),
        (AdaptiveModules(), TrainedOn.CLIENT, PreparationKey(True, 4, InverseTraining())),
        (BOUND, TrainedOn.CLIENT, PreparationKey(True, 4, QUICK)),
        (PluginSpy(), TrainedOn.CLIENT, PreparationKey(True, 4, InverseTraining())),
    ],
)
def test_which_preparation_an_attack_builds_on(
    attack: Attack, trained_on: TrainedOn, key: PreparationKey | None
) -> None:
    assert preparation_key(attack, trained_on, 4) == key


def test_each_attack_is_handed_the_preparations_of_its_own_threat_model(make_world: MakeWorld) -> None:
    world = make_world(LATENT, [ADAPTIVE, AllSeeingSpy()], victims=2)
    world.audit()
    ((observations, knowledge, earlier),) = AllSeeingSpy.handed
    for observation in observations:
        given = knowledge.preparation(observation.client)
        assert given is world.attacker.preparations[PreparationKey(True, observation.client, QUICK)]
    assert {*earlier} == {ADAPTIVE}


# End to end


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


def test_an_audit_leaves_what_it_is_given_as_it_was(make_world: MakeWorld) -> None:
    world = make_world(UpdateNoise(), [INVERSION, ADAPTIVE], local_steps=2)
    seen = world.captured()
    handed = tensors_in((seen, world.attacker.target.module.state_dict()))
    before = [tensor.clone() for tensor in handed]
    audit_updates(world.attacker, [o for o, _ in seen], [b for _, b in seen], scorer=world.scorer, device=CPU)
    assert all(torch.equal(one, two) for one, two in zip(handed, before, strict=True))


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


# The truth stays out of the attack


def tensors_in(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for part in value.values() for t in tensors_in(part)]
    if isinstance(value, list | tuple):
        return [t for part in value for t in tensors_in(part)]
    if is_dataclass(value):
        return [t for field in fields(value) for t in tensors_in(getattr(value, field.name))]
    return []


@pytest.mark.parametrize("spy", [Spy(), AllSeeingSpy()], ids=lambda s: s.name)
def test_no_attack_is_handed_an_original(spy: Spy, make_world: MakeWorld) -> None:
    world = make_world(PixelNoise(), [Baseline(), INVERSION, spy])
    world.audit()
    ((observations, knowledge, earlier),) = type(spy).handed
    private = torch.cat([shard.floats() for shard in world.shards]).flatten(1)
    handed = tensors_in((observations, knowledge, list(earlier.values())))
    images = [t for t in handed if t.shape[-3:] == (1, 12, 12)]
    assert images
    for image in images:
        scaled = image.float() / 255 if image.dtype == torch.uint8 else image
        distance = torch.cdist(scaled.reshape(-1, 144), private)
        assert float(distance.min()) > 0.1
    assert (observations[0].trained_images is not None) == spy.needs.trained_images
    assert (knowledge.auxiliary is not None) == spy.needs.auxiliary_data
    assert bool(knowledge.preparations) == spy.needs.defense_algorithm


@pytest.mark.parametrize("spy", [Spy(), AllSeeingSpy()], ids=lambda s: s.name)
def test_each_repeat_is_handed_its_own_draw_where_trained_images_are_granted(spy: Spy, make_world: MakeWorld) -> None:
    world = make_world(PixelNoise(), [spy])
    seen = [together([*pair]) for pair in zip(world.captured(0), world.captured(1), strict=True)]
    report = audit_updates(
        world.attacker, [o for o, _ in seen], [b for _, b in seen], scorer=world.scorer, round=1, device=CPU
    )
    ((observations, _, _),) = type(spy).handed
    for observation, (_, truth) in zip(observations, seen, strict=True):
        assert [one.labels is not None for one in observation.series] == [True, True]
        for one, draw in zip(observation.series, truth.draws, strict=True):
            assert (one.trained_images is draw) == spy.needs.trained_images
    # A perfect inversion would average the draws.
    means = [(batch.draws[0] + batch.draws[1]) / 2 for _, batch in seen]
    errors = [float((mean - batch.originals).square().mean()) for mean, (_, batch) in zip(means, seen, strict=True)]
    assert [r.trained_mse for r in report.records] == pytest.approx(errors, rel=1e-4)


@pytest.mark.parametrize("granted", [True, False])
def test_labels_are_handed_over_only_where_granted(granted: bool, make_world: MakeWorld) -> None:
    """Breaching's FedAvg hands the true labels over with the hyperparameters, whatever the setting says."""
    world = make_world(NoDefense(), [Baseline(), Spy(), INVERSION], labels_known=granted, local_steps=2)
    records = world.audit().records
    ((observations, knowledge, _),) = Spy.handed
    assert knowledge.threat_model.labels == granted
    assert all((o.labels is not None) == granted for o in observations)
    assert {r.threat_model.labels for r in records} == {granted}
    whole_numbers = [t for t in tensors_in((observations, knowledge)) if not t.is_floating_point()]
    assert bool(whole_numbers) == granted
    # Recovered or given, the inversion uses the right ones; the spy says 0 and is marked down for it.
    assert all(r.label_recovered for r in records if r.attack != "spy")
    assert {r.label_recovered == (r.label == 0) for r in records if r.attack == "spy"} == {True}
    # A baseline that had to recover the class shows something that the update told.
    assert {r.attacker_label is None for r in records if r.attack == "baseline"} == {granted}


def test_labels_of_batches_are_recovered_from_the_update(make_world: MakeWorld) -> None:
    records = make_world(NoDefense(), [INVERSION, ADAPTIVE], batch_size=3, labels_known=False).audit().records
    assert {r.attack for r in records} == {"inverting_gradients", "adaptive"}
    assert all(r.label_recovered for r in records)
