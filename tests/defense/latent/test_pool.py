from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import fedveil as fv
from fedveil.defense import DefenseContext
from fedveil.defense.fitting import frozen
from fedveil.defense.hidden import stages_of
from fedveil.defense.latent import pool as pool_module
from fedveil.defense.latent.pool import Features, Pool, filled, make_pool
from fedveil.fl import progress
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.models import ModelSpec, build_model


def names(model: nn.Module, shape: tuple[int, int, int]) -> list[tuple[str, tuple[int, ...]]]:
    return [(stage.module, stage.size) for stage in stages_of(model, shape)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("convnet", [("body.0.2", (16, 16)), ("body.1.2", (8, 8)), ("body.2.2", (4, 4)), ("body", (2, 2))]),
        ("lenet", [("body.1", (8, 8)), ("body", (4, 4))]),
        ("mlp", [("body", (12,))]),
    ],
)
def test_a_stage_ends_where_the_image_is_halved(name: str, expected: list[tuple[str, tuple[int, ...]]]) -> None:
    model = build_model(ModelSpec(name, (3, 16, 16), 5, width=12))
    assert names(model, (3, 16, 16)) == expected


@pytest.mark.parametrize("name", ["convnet", "lenet", "mlp", "resnet20", "resnet18"])
def test_features_of_an_image_depend_on_it_alone(name: str) -> None:
    model = frozen(build_model(ModelSpec(name, (1, 16, 16), 3, width=4)))
    stream = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (131, 1, 16, 16), generator=stream, dtype=torch.uint8)
    images = Images(pixels, torch.zeros(131, dtype=torch.int64))
    features = Features(model, images.shape)
    found, order = features.of(images), torch.randperm(131, generator=stream)
    for few in (order[:1], order[:7], order):
        for whole, part in zip(found, features.of(images.take(few)), strict=True):
            assert torch.equal(part, whole[few])
    assert all(len(stage) == 131 and stage.ndim == 2 for stage in found)
    # What passes the network at once is what the modules give.
    for whole, live in zip(found, features(images.floats()[:7]), strict=True):
        torch.testing.assert_close(live, whole[:7])
    assert all(len(module._forward_hooks) == 0 for module in model.modules())
    (deepest,) = Features(model, images.shape, deepest=1).of(images)
    assert torch.equal(deepest, found[-1])


class Tutorial(nn.Module):
    """One pooling, used twice, and activations that are no modules."""

    def __init__(self, *, image_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(image_shape[0], 3, 3, padding=1), nn.Conv2d(3, 5, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(5 * (image_shape[1] // 4) * (image_shape[2] // 4), classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.first(x)))
        x = self.pool(torch.relu(self.second(x)))
        logits: Tensor = self.head(x.flatten(1))
        return logits


def test_a_plug_in_model_that_uses_a_module_twice_is_read_at_both_places() -> None:
    fv.register_model("tutorial")(Tutorial)
    model = frozen(fv.build_model("tutorial", image_shape=(1, 16, 16), classes=2))
    assert isinstance(model, Tutorial)
    assert names(model, (1, 16, 16)) == [("first", (16, 16)), ("second", (8, 8)), ("pool", (4, 4))]
    # 'second' came after 'pool' at 8 px. Without it, 'pool' ends both stages.
    x = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    inner = model.pool(torch.relu(model.first(x)))
    one, other = Features(model, (1, 16, 16))(x)
    assert torch.equal(one, model.second(inner).flatten(1))
    assert torch.equal(other, model.pool(torch.relu(model.second(inner))).flatten(1))

    class Twice(Tutorial):
        def forward(self, x: Tensor) -> Tensor:
            small = self.pool(x)
            logits: Tensor = self.head(self.pool(small).repeat(1, 5, 1, 1).flatten(1))
            return logits

    twice = frozen(Twice(image_shape=(1, 16, 16), classes=2))
    assert names(twice, (1, 16, 16)) == [("pool", (8, 8)), ("pool", (4, 4))]
    one, other = Features(twice, (1, 16, 16))(x)
    assert torch.equal(one, twice.pool(x).flatten(1))
    assert torch.equal(other, twice.pool(twice.pool(x)).flatten(1))


def test_a_model_without_features_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(
        FedveilError, match=r"model Sequential: none of its modules gives features .* allowed: one with"
    ):
        stages_of(model, (1, 8, 8))


def test_places_are_filled_with_repeats() -> None:
    assert filled(torch.tensor([4, 7]), 5).tolist() == [4, 7, 4, 7, 4]
    assert filled(torch.tensor([4, 7]), 2).tolist() == [4, 7]
    assert filled(torch.tensor([], dtype=torch.int64), 2).tolist() == []


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.flatten() for parameter in model.parameters()])


def test_a_pool_holds_random_and_trained_networks_and_the_judge_is_the_same_in_any(
    context: DefenseContext, private: Images
) -> None:
    pool = make_pool(context, random=2, trained=3)
    assert len(pool.networks) == len(pool.scales) == 5
    assert len({weights(network).sum().item() for network in pool.networks}) == 5
    assert not any(p.requires_grad for network in pool.networks for p in network.parameters())
    assert not any(network.training for network in pool.networks)
    alone = make_pool(context, random=0, trained=1)
    assert torch.equal(weights(alone.judge), weights(pool.judge))
    similar, again = (one.reader(private.shape, context.device).of(private)[0] for one in (alone, pool))
    assert torch.equal(similar, again)
    # From the cache it is the same, and without one too.
    fresh = make_pool(replace(context, cache=None), random=2, trained=3)
    for one, other in zip(pool.networks, fresh.networks, strict=True):
        assert torch.equal(weights(one), weights(other))
    assert fresh.scales == pool.scales
    other_seed = make_pool(replace(context, seed=1), random=0, trained=1)
    assert not torch.equal(weights(other_seed.judge), weights(pool.judge))


def test_scales_are_the_scatter_of_public_images(pool: Pool, context: DefenseContext, public: Images) -> None:
    found = make_pool(context, random=1, trained=1)
    for network, scales in zip(found.networks, found.scales, strict=True):
        for features, scale in zip(Features(network, public.shape).of(public), scales, strict=True):
            assert scale == pytest.approx(float(features.var(0, correction=0).sum()), rel=1e-4)


@pytest.mark.parametrize("cached", [0, 1])
def test_training_says_which_network_it_is_at_and_what_the_cache_holds_takes_no_time(
    cached: int, context: DefenseContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 2, 3 and 6 steps, of a second each."""
    ticks = iter(range(100))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    monkeypatch.setattr(progress, "EVERY", 4.0)
    caplog.set_level(logging.INFO)
    training = pool_module._Training((2, 3, 6))
    for at, steps in enumerate((2, 3, 6)):
        stepped = training.of(at)
        for _ in range(steps if at >= cached else 0):
            stepped()
    assert caplog.messages == (
        ["pool: network 3 of 3, step 1 of 6, about 5 s left", "pool: network 3 of 3, step 5 of 6, about 1 s left"]
        if cached
        else [
            "pool: network 2 of 3, step 2 of 3, about 7 s left",
            "pool: network 3 of 3, step 3 of 6, about 3 s left",
        ]
    )
