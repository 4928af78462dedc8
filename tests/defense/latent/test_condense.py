from __future__ import annotations

import itertools
import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedveil.defense.latent import condense as module
from fedveil.defense.latent.condense import Matching, condense, public_starts, to_bytes
from fedveil.defense.latent.game import Adversary, Stake
from fedveil.defense.latent.grouping import Grouping, group_by_class
from fedveil.defense.latent.pool import Features, Pool
from fedveil.defense.latent.space import LatentOf, Pixels, Space
from fedveil.defense.latent.targets import group_means, spread_out
from fedveil.defense.public_models import PublicModels
from fedveil.fl import progress
from fedveil.fl.data.images import Images

CPU = torch.device("cpu")
HOW = Matching(steps=12, learning_rate=0.03, strength=1.0)
PIXELS = Pixels()


def learnt(
    images: Images,
    grouping: Grouping,
    pool: Pool,
    how: Matching = HOW,
    space: Space = PIXELS,
    adversary: Adversary | None = None,
) -> Tensor:
    grey = torch.randint(256, (20, *images.shape), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    public = Images(grey, torch.arange(20) % 2)
    starts = grouping.means(space.of(images))
    stream = torch.Generator().manual_seed(3)
    readers, labels = pool.readers(images.shape, CPU), grouping.labels(images.labels)
    targets = [
        [
            spread_out(mean, labels, known, public.labels, how.spread)
            for mean, known in zip(own, reader.of(public), strict=True)
        ]
        for own, reader in zip(group_means(images, grouping, readers), readers, strict=True)
    ]
    stake = None if adversary is None else Stake.of(images, grouping, adversary)
    return condense(targets, starts, readers, pool.scales, how, space=space, stake=stake, device=CPU, stream=stream)


@pytest.fixture(scope="module", params=["pixels", "latent"])
def space(request: pytest.FixtureRequest, public_models: PublicModels) -> Space:
    return PIXELS if request.param == "pixels" else LatentOf(public_models.autoencoder, CPU)


@pytest.fixture
def grouping(private: Images) -> Grouping:
    """Forty groups of two: more than are learnt together."""
    return Grouping(torch.arange(80) // 2, 2)


def test_a_learnt_image_depends_on_its_group_and_the_pool_alone_to_the_last_bit(
    private: Images, grouping: Grouping, pool: Pool, space: Space
) -> None:
    assert len(grouping) > module.TOGETHER
    whole = learnt(private, grouping, pool, space=space)
    assert whole.shape == (40, *private.shape)
    assert whole.dtype == torch.uint8
    for group in (0, 17, 39):
        own = (grouping.of == group).nonzero()[:, 0]
        alone = learnt(private.take(own.flip(0)), Grouping(torch.tensor([0, 0]), 2), pool, space=space)
        assert torch.equal(alone[0], whole[group])
    # Whoever else is in the shard, and where: another order, other images beside it.
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    assert torch.equal(learnt(private.take(order), Grouping(grouping.of[order], 2), pool, space=space), whole)
    others = private.pixels.clone()
    others[6:] = 255 - others[6:]
    changed = learnt(Images(others, private.labels), grouping, pool, space=space)
    assert torch.equal(changed[:3], whole[:3])
    assert not torch.equal(changed[3:], whole[3:])


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31), k=st.integers(2, 5), count=st.integers(5, 40))
def test_whoever_else_is_there_and_in_any_order_a_groups_image_is_the_same(
    private: Images, pool: Pool, space: Space, adversary: Adversary, seed: int, k: int, count: int
) -> None:
    """k-anonymity: given the grouping, an image that is trained on is a symmetric function of its own group alone."""
    draw = torch.Generator().manual_seed(seed)
    some = private.take(torch.randperm(len(private), generator=draw)[:count])
    grouping = group_by_class(some.floats().flatten(1), some.labels * 0, k)
    how, against = replace(HOW, steps=3, privacy_weight=1.0), adversary if seed % 2 else None
    whole = learnt(some, grouping, pool, how, space, against)
    group = int(torch.randint(len(grouping), (1,), generator=draw))
    own = (grouping.of == group).nonzero()[:, 0]
    own = own[torch.randperm(len(own), generator=draw)]
    (alone,) = learnt(some.take(own), Grouping(torch.zeros_like(own), k), pool, how, space, against)
    assert torch.equal(alone, whole[group])


def test_learning_says_how_many_images_are_done(
    private: Images, grouping: Grouping, pool: Pool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A second a step: of forty images 32 are learnt together, which counts as four fifths."""
    ticks = itertools.count()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    monkeypatch.setattr(progress, "EVERY", 9.0)
    caplog.set_level(logging.INFO)
    learnt(private, grouping, pool)
    assert caplog.messages == [
        "learnt 0 of 40 group images, about 6 s left",
        "learnt 32 of 40 group images, about 2 s left",
    ]


def test_of_an_image_only_its_part_in_the_groups_sums_is_used(private: Images, pool: Pool) -> None:
    """What is left out of all groups does not show."""
    grouping = Grouping(torch.where(torch.arange(80) < 6, torch.arange(80) // 3, -1), 3)
    found = learnt(private, grouping, pool)
    assert torch.equal(found, learnt(private.take(torch.arange(6)), Grouping(grouping.of[:6], 3), pool))


@pytest.mark.parametrize("how", [replace(HOW, strength=0.0), replace(HOW, steps=0)], ids=["strength", "steps"])
def test_nothing_learnt_is_the_groups_mean(private: Images, grouping: Grouping, pool: Pool, how: Matching) -> None:
    x = private.floats()
    expected = ((x[0::2] + x[1::2]) / 2 * 255).round().to(torch.uint8)
    difference = (learnt(private, grouping, pool, how).int() - expected.int()).abs()
    assert int(difference.max()) <= 1, "halves are rounded either way"
    assert torch.equal(learnt(private, grouping, pool, how), to_bytes(grouping.means(x)))


def test_a_start_is_the_public_image_of_the_class_that_is_most_like_the_group(public: Images, pool: Pool) -> None:
    judge = pool.reader(public.shape, CPU)
    features = judge.of(public)[0]
    wanted = features[torch.tensor([3, 4, 4])] + 1e-4
    starts = public_starts(wanted, torch.tensor([1, 0, 7]), public, judge)
    # Of class 7 there is none, so that any will do.
    assert torch.equal(starts.pixels, public.pixels[torch.tensor([3, 4, 4])])
    (other,) = public_starts(wanted[:1], torch.tensor([0]), public, judge).pixels
    distances = (features - wanted[0]).square().sum(1)
    assert torch.equal(other, public.pixels[public.labels == 0][distances[public.labels == 0].argmin()])


@pytest.mark.parametrize("strength", [0.02, 0.1, 0.3])
def test_strength_bounds_the_distance_to_the_mean(
    private: Images, grouping: Grouping, pool: Pool, strength: float
) -> None:
    means = grouping.means(private.floats())
    found = learnt(private, grouping, pool, replace(HOW, strength=strength, learning_rate=0.2)).float() / 255
    distance = (found - means).square().mean((1, 2, 3)).sqrt()
    bound = strength * means.square().mean((1, 2, 3)).sqrt()
    assert bool((distance <= bound + 0.5 / 255).all())
    if strength <= 0.1:
        assert bool((distance > 0.5 * bound).all()), "the bound is what holds it here"


def test_it_comes_nearer_to_the_groups_features_than_the_mean_is(
    private: Images, grouping: Grouping, pool: Pool, space: Space
) -> None:
    def mismatch(images: Tensor) -> float:
        total = 0.0
        for network in pool.networks:
            reader = Features(network, private.shape)
            wanted = [grouping.means(stage) for stage in reader.of(private)]
            total += sum(
                float((one - target).square().sum()) for one, target in zip(reader(images), wanted, strict=True)
            )
        return total

    found = learnt(private, grouping, pool, replace(HOW, steps=40), space)
    begun = space.shown(grouping.means(space.of(private)))
    assert mismatch(found.float() / 255) < 0.9 * mismatch(begun)


def test_no_groups_give_no_images(private: Images, pool: Pool, space: Space) -> None:
    assert learnt(private, Grouping(torch.full((80,), -1), 2), pool, space=space).shape == (0, *private.shape)


@pytest.mark.parametrize("strength", [0.02, 0.1])
def test_strength_bounds_the_distance_in_the_latent(
    private: Images, grouping: Grouping, pool: Pool, public_models: PublicModels, strength: float
) -> None:
    """Where decoded images are written down as they are, the latent is seen to have gone as far as it may."""
    seen: list[Tensor] = []

    class Watched(LatentOf):
        def shown(self, places: Tensor) -> Tensor:
            seen.append(places.detach().clone())
            return super().shown(places)

    space = Watched(public_models.autoencoder, CPU)
    some, few = private.take(torch.arange(8)), Grouping(grouping.of[:8], 2)
    learnt(some, few, pool, replace(HOW, strength=strength, learning_rate=0.2), space)
    starts = few.means(space.of(some))
    distance = (seen[-1][:4] - starts).square().mean((1, 2, 3)).sqrt() / starts.square().mean((1, 2, 3)).sqrt()
    assert bool((distance <= strength * 1.001).all())
    assert bool((distance > 0.5 * strength).all())


def test_a_latent_depends_in_no_bit_on_other_images_and_stands_for_its_image(
    private: Images, public_models: PublicModels
) -> None:
    space = LatentOf(public_models.autoencoder, CPU)
    found, order = space.of(private), torch.randperm(80, generator=torch.Generator().manual_seed(0))
    for few in (order[:1], order[:7], order):
        assert torch.equal(space.of(private.take(few)), found[few])
    rebuilt = public_models.autoencoder(private.floats()).clamp(0, 1)
    torch.testing.assert_close(space.shown(found), rebuilt, rtol=0, atol=1e-5)
    assert space.of(private.take(order[:0])).shape == (0, *found.shape[1:])
    torch.testing.assert_close(space.unit(found).flatten(), found.square().mean((1, 2, 3)).sqrt())


def test_grey_values_are_rounded_to_the_nearest() -> None:
    assert to_bytes(torch.tensor([-0.1, 0.0, 0.49 / 255, 0.51 / 255, 1.0, 1.2])).tolist() == [0, 0, 0, 1, 255, 255]


def test_groups_are_spread_about_their_class_as_public_images_place_it() -> None:
    means = torch.tensor([[2.0, 0.0], [0.0, 4.0], [1.0, 1.0]])
    known, classes = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1])
    labels = torch.tensor([0, 1, 2])  # of the last class there is no public image: the mean of all stands in
    torch.testing.assert_close(spread_out(means, labels, known, classes, 1.0), means)
    found = spread_out(means, labels, known, classes, 2.0)
    torch.testing.assert_close(found, torch.tensor([[3.0, 0.0], [0.0, 7.0], [2 - 2 / 3, 2 - 1 / 3]]))
    torch.testing.assert_close(spread_out(means, labels, known, classes, 0.0)[0], torch.tensor([1.0, 0.0]))


def test_learnt_images_of_a_class_lie_farther_apart_where_they_are_spread(private: Images, pool: Pool) -> None:
    grouping = group_by_class(private.floats().flatten(1), private.labels, 2)

    def apart(spread: float) -> float:
        found = learnt(private, grouping, pool, replace(HOW, steps=40, spread=spread)).float() / 255
        own = torch.cat(list(Features(pool.networks[-1], private.shape)(found)), dim=1)
        return sum(float(own[grouping.labels(private.labels) == label].var(0).sum()) for label in (0, 1))

    assert apart(0.5) < apart(1.0) < apart(2.0)
