from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedveil.defense import (
    ATS,
    BiDO,
    BlockAverage,
    Defense,
    DefenseContext,
    FixedErasing,
    GroupMean,
    InstaHide,
    LatentAutoencoder,
    LatentNoise,
    LatentPerturbation,
    NoDefense,
    PixelDropout,
    PixelNoise,
    PublicReconstruction,
    RandomErasing,
    Stack,
    Surrogate,
    TopK,
    TrainedOn,
    UpdateNoise,
)
from fedveil.defense.latent import pool
from fedveil.fl.data.images import Images
from fedveil.fl.messages import ClientUpdate

QUICK: list[Defense[Any]] = [
    NoDefense(),
    PixelNoise(strength=0.3),
    LatentNoise(public_steps=2),
    UpdateNoise(strength=0.5),
    TopK(keep=0.25),
    LatentAutoencoder(steps=1, client_steps=1, public_steps=2),
    BlockAverage(size=2),
    BiDO(floor_batch=8),
    RandomErasing(fill="mean"),
    FixedErasing(),
    PixelDropout(),
    InstaHide(),
    ATS(length=2, candidates=4, policies=2, scored=3),
    PublicReconstruction(public_steps=2),
    GroupMean(k=5),
    LatentPerturbation(k=5, steps=1, random_networks=1, trained_networks=1),
    Stack(parts=(LatentNoise(public_steps=2), TopK(keep=0.25))),
]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of a pool are trained for a moment."""
    monkeypatch.setattr(pool, "LONGEST", 2)


@pytest.mark.parametrize("settings", QUICK, ids=repr)
def test_settings_are_not_state(settings: Defense[Any], context: DefenseContext, private: Images) -> None:
    before, shown = pickle.dumps(settings), repr(settings)
    prepared = settings.prepare(private, context, settings.pretrain(context), client=0)
    assert repr(settings) == shown
    assert settings == pickle.loads(before)  # noqa: S301
    assert pickle.dumps(settings) == before
    assert not isinstance(prepared, Defense)


@pytest.mark.parametrize("settings", QUICK, ids=repr)
def test_a_prepared_defence_can_be_sent_to_another_process(
    settings: Defense[Any], context: DefenseContext, private: Images
) -> None:
    prepared = settings.prepare(private, context, settings.pretrain(context), client=0)
    sent = pickle.loads(pickle.dumps(prepared))  # noqa: S301
    x = private.floats()[:3]
    one, other = (d.data(x, None, torch.Generator().manual_seed(2)) for d in (prepared, sent))
    assert torch.equal(one, other)
    assert torch.equal(prepared.images(private).pixels, sent.images(private).pixels)
    assert sent.diagnostics() == prepared.diagnostics()


@pytest.mark.parametrize("settings", QUICK, ids=repr)
def test_what_is_learnt_from_public_images_can_be_sent_too(
    settings: Defense[Any], context: DefenseContext, private: Images
) -> None:
    public = settings.pretrain(context)
    sent = pickle.loads(pickle.dumps(public))  # noqa: S301
    here, there = (settings.prepare(private, context, held, client=4) for held in (public, sent))
    x = private.floats()[:3]
    one, other = (d.data(x, None, torch.Generator().manual_seed(2)) for d in (here, there))
    assert torch.equal(one, other)
    assert torch.equal(here.images(private).pixels, there.images(private).pixels)


def test_no_defence_is_the_identity_and_gives_nothing_away(context: DefenseContext, private: Images) -> None:
    prepared = NoDefense().prepare(private, context, NoDefense().pretrain(context), client=0)
    assert NoDefense().trained_on is TrainedOn.NOTHING
    assert prepared.surrogate() == Surrogate(data=None, update=None, visible=None)
    assert prepared.diagnostics() == {}
    x = torch.rand(2, 1, 4, 4)
    update = ClientUpdate.gradient({"w": x})
    assert prepared.data(x, None, torch.Generator()) is x
    assert prepared.update(update, torch.Generator()) is update
    assert prepared.output(x) is x
    assert prepared.loss(x, torch.nn.Identity(), x, x, x) is x


@dataclass(frozen=True, kw_only=True)
class Darken(Defense[None]):
    """All that a user has to write."""

    strength: float = 0.5

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        return self.strength * x


def test_a_defence_of_ones_own_needs_nothing_but_its_hook(context: DefenseContext, private: Images) -> None:
    darken = Darken(strength=0.25)
    assert repr(darken) == "Darken(strength=0.25)"
    assert darken.trained_on is TrainedOn.NOTHING
    prepared = darken.prepare(private, context, darken.pretrain(context), client=0)
    x = torch.tensor([0.0, 0.4, 1.0])
    assert prepared.data(x, None, torch.Generator()).tolist() == pytest.approx([0, 0.1, 0.25])
    assert prepared.output(x) is x
    assert repr(prepared) == "Stateless(Darken(strength=0.25))"
    surrogate = prepared.surrogate()
    assert surrogate.data is not None
    assert surrogate.data(x, None, torch.Generator()).tolist() == pytest.approx([0, 0.1, 0.25])
    assert (surrogate.update, surrogate.visible) == (None, None)


@dataclass(frozen=True, kw_only=True)
class Halving(Defense[None]):
    """The other three hooks."""

    def loss(self, loss: Tensor, model: object, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        return loss / 2

    def update(self, update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
        return replace(update, tensors={n: t / 2 for n, t in update.tensors.items()})

    def output(self, logits: Tensor) -> Tensor:
        return logits / 2


def test_each_hook_of_the_settings_is_used(context: DefenseContext, private: Images) -> None:
    prepared = Halving().prepare(private, context, None, client=0)
    one = torch.tensor(1.0)
    assert prepared.data(one, None, torch.Generator()) is one
    assert prepared.loss(one, torch.nn.Identity(), one, one, one) == 0.5
    assert prepared.output(one) == 0.5
    assert prepared.update(ClientUpdate.gradient({"w": one}), torch.Generator()).tensors["w"] == 0.5
    surrogate = prepared.surrogate()
    assert surrogate.data is None
    assert surrogate.update is not None
    assert surrogate.update(ClientUpdate.gradient({"w": one}), torch.Generator()).tensors["w"] == 0.5


def test_preparation_streams_follow_seed_and_path(context: DefenseContext) -> None:
    def draw(p: DefenseContext, *path: str | int) -> float:
        return torch.rand(1, generator=p.stream(*path)).item()

    assert draw(context, "a", 1) == draw(context, "a", 1)
    assert draw(context, "a", 1) != draw(context, "a", 2)
    assert draw(context, "a", 1) != draw(replace(context, seed=1), "a", 1)
