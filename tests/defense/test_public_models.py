from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from fedveil.defense import DefenseContext, LatentNoise
from fedveil.defense.public_models import PublicModels, train_public_models
from fedveil.fl.data.images import Images


def same(left: nn.Module, right: nn.Module) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_trained_public_models_rebuild_and_read_images_they_never_saw(
    public_models: PublicModels, private: Images
) -> None:
    x = private.floats()
    with torch.no_grad():
        error = (public_models.autoencoder(x) - x).square().mean()
        right = (public_models.reference(x).argmax(1) == private.labels).float().mean()
    # The images' variance is 0.08; their class means are off by 0.04.
    assert error < 0.002
    assert right > 0.95


def test_public_models_are_frozen(public_models: PublicModels) -> None:
    for module in (public_models.autoencoder, public_models.reference):
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())


def test_the_cache_gives_the_same_bits_as_training(context: DefenseContext, tmp_path: Path) -> None:
    trained = train_public_models(replace(context, cache=None), steps=2)
    cached = replace(context, cache=tmp_path)
    for _ in range(2):
        found = train_public_models(cached, steps=2)
        assert same(found.autoencoder, trained.autoencoder)
        assert same(found.reference, trained.reference)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_second_time_nothing_is_trained(
    context: DefenseContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = replace(context, cache=tmp_path)
    train_public_models(cached, steps=2)
    with monkeypatch.context() as patch:
        patch.setattr("fedveil.defense.public_models.fit", None)
        train_public_models(cached, steps=2)
        with pytest.raises(TypeError):
            train_public_models(replace(cached, seed=1), steps=2)


def test_all_that_a_module_depends_on_is_in_its_key(context: DefenseContext, public: Images, tmp_path: Path) -> None:
    base = replace(context, cache=tmp_path)
    start = train_public_models(base, steps=2)
    others = [
        train_public_models(base, steps=3),
        train_public_models(replace(base, seed=1), steps=2),
        train_public_models(replace(base, public=public.take(torch.arange(100))), steps=2),
    ]
    assert not any(same(found.autoencoder, start.autoencoder) for found in others)
    assert not any(same(found.reference, start.reference) for found in others)
    wider = train_public_models(replace(base, model=replace(base.model, width=8)), steps=2)
    assert same(wider.autoencoder, start.autoencoder), "the autoencoder does not depend on the classifier"
    assert not same(wider.reference, start.reference)
    # Four autoencoders, and a reference classifier for each of five.
    assert len(list(tmp_path.iterdir())) == 9


def test_pretraining_a_defence_again_gives_the_same_modules(context: DefenseContext, tmp_path: Path) -> None:
    cached = replace(context, cache=tmp_path)
    first, second = (LatentNoise(public_steps=2).pretrain(cached) for _ in range(2))
    other = LatentNoise(strength=3.0, public_steps=2).pretrain(cached)
    assert same(first, second)
    assert same(first, other), "trials of other strengths share it"


def test_the_global_generator_is_left_alone(context: DefenseContext) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    train_public_models(replace(context, cache=None), steps=1)
    assert torch.equal(torch.get_rng_state(), before)
