from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from fedveil.attacks import (
    Observation,
)
from fedveil.attacks.adaptive.preparation import PreparationKey, prepare_attacker
from fedveil.defense import DefenseContext, LatentNoise, NoDefense, PixelNoise, TopK, UpdateNoise
from fedveil.defense.base import Defense, PreparedDefense, Stateless, TrainedOn
from fedveil.defense.inverse.learnt import InverseTraining
from fedveil.fl.data.images import Images
from fedveil.fl.models import ModelSpec
from fedveil.fl.seeding import torch_stream

SPEC = ModelSpec("lenet", (1, 12, 12), 2, width=4)

QUICK = InverseTraining(steps=60, batch_size=32, width=8)

CPU = torch.device("cpu")

Blobs = Callable[..., Images]

Observe = Callable[..., Observation]


@dataclass(frozen=True, kw_only=True)
class Shade(Defense[float]):
    """Darkens by what it learnt on public images, and by the mean of the private ones."""

    name: ClassVar[str] = "shade"

    @property
    def trained_on(self) -> TrainedOn:
        return TrainedOn.CLIENT

    def pretrain(self, context: DefenseContext) -> float:
        return float(context.public.floats().mean())

    def prepare(self, private: Images, context: DefenseContext, public: float, *, client: int) -> PreparedDefense:
        return PreparedShade(public, float(private.floats().mean()), context.seed, client)


@dataclass(frozen=True)
class PreparedShade(PreparedDefense):
    public: float
    private: float
    seed: int
    client: int


def test_the_attackers_copy_holds_the_public_modules_and_its_own_images_alone(blobs: Blobs) -> None:
    public, private, auxiliary = blobs(4, 1, side=12), blobs(4, 2, side=12), blobs(4, 3, side=12)
    defense = Shade()
    context = DefenseContext(public, SPEC, CPU, seed=1)
    learnt = defense.pretrain(context)
    clients = defense.prepare(private, context, learnt, client=2)
    attackers = defense.shadow(auxiliary, replace(context, seed=9), learnt)
    assert clients == PreparedShade(learnt, float(private.floats().mean()), 1, 2)
    assert attackers == PreparedShade(learnt, float(auxiliary.floats().mean()), 9, -1)


def test_an_inverse_is_trained_on_what_the_prepared_defence_does(blobs: Blobs) -> None:
    public = blobs(8, 2, side=12)
    defense, context = LatentNoise(public_steps=1), DefenseContext(public, SPEC, CPU, seed=1)
    prepared = defense.prepare(public, context, defense.pretrain(context), client=0)
    quick = PreparationKey(False, None, InverseTraining(steps=1, batch_size=4, width=4), observations=3)
    found = prepare_attacker(prepared, public, quick, classes=2, device=CPU, stream=torch_stream(2, "inverse"))
    x = public.floats()
    assert found.surrogate.data is not None
    truly = prepared.data(x, None, torch_stream(3, "noise"))
    assert torch.equal(found.surrogate.data(x, None, torch_stream(3, "noise")), truly)
    assert found.inverse is not None
    assert found.reader is not None
    assert found.inverse.observations == found.reader.observations == found.draws == 3


@pytest.mark.parametrize("defense", [NoDefense(), UpdateNoise(), TopK()], ids=repr)
def test_a_defence_that_leaves_images_alone_needs_no_inverse(
    defense: NoDefense | UpdateNoise | TopK, blobs: Blobs
) -> None:
    key = PreparationKey(False, None, InverseTraining(steps=1, batch_size=4, width=4), observations=3)
    stream = torch_stream(1, "inverse")
    found = prepare_attacker(Stateless(defense), blobs(8, 2, side=12), key, classes=2, device=CPU, stream=stream)
    assert found.inverse is None
    assert found.unlearnt is None
    assert found.draws == 1
    assert found.reader is not None
    assert found.reader.inverse is None


def test_images_that_the_inverse_has_not_learnt_are_known(blobs: Blobs) -> None:
    auxiliary = blobs(60, 2, side=12)
    key = PreparationKey(False, None, InverseTraining(steps=1, batch_size=4, width=4))
    stream = torch_stream(1, "inverse")
    found = prepare_attacker(Stateless(PixelNoise()), auxiliary, key, classes=2, device=CPU, stream=stream)
    assert found.unlearnt is not None
    spared, shown = found.unlearnt
    assert torch.equal(spared.pixels, shown.pixels)
    assert 0 < len(spared) < 30


def test_images_of_one_class_teach_no_classifier(blobs: Blobs) -> None:
    auxiliary = blobs(8, 2, side=12).take(torch.arange(0, 8, 2))
    key = PreparationKey(False, None, InverseTraining(steps=1, batch_size=4, width=4))
    stream = torch_stream(1, "inverse")
    found = prepare_attacker(Stateless(PixelNoise()), auxiliary, key, classes=2, device=CPU, stream=stream)
    assert found.reader is None
    assert found.inverse is not None
