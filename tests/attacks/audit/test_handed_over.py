"""What an attack is handed: what its threat model grants, and never the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from worlds import ADAPTIVE, BOUND, CPU, INVERSION, LATENT, MODULES, QUICK, MakeWorld

from fedveil.attacks import (
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
from fedveil.attacks.adaptive.preparation import PreparationKey, preparation_key
from fedveil.attacks.audit.capture import together
from fedveil.attacks.audit.updates import audit_updates
from fedveil.defense import NoDefense, PixelNoise, UpdateNoise
from fedveil.defense.base import TrainedOn
from fedveil.fl.messages import Reconstruction, ThreatModel


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


def test_an_audit_leaves_what_it_is_given_as_it_was(make_world: MakeWorld) -> None:
    world = make_world(UpdateNoise(), [INVERSION, ADAPTIVE], local_steps=2)
    seen = world.captured()
    handed = tensors_in((seen, world.attacker.target.module.state_dict()))
    before = [tensor.clone() for tensor in handed]
    audit_updates(world.attacker, [o for o, _ in seen], [b for _, b in seen], scorer=world.scorer, device=CPU)
    assert all(torch.equal(one, two) for one, two in zip(handed, before, strict=True))


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
