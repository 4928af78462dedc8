from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedveil.defense import DefenseContext, LatentPerturbation
from fedveil.defense.gaussian_mechanism import gaussian_sigma
from fedveil.defense.latent.condense import public_starts
from fedveil.defense.latent.grouping import Grouping
from fedveil.defense.latent.pool import Pool
from fedveil.defense.latent.shared import PreparedShared
from fedveil.defense.latent.targets import Means, Release, released_means
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError

CPU = torch.device("cpu")
HOW = Release(epsilon=1.0, delta=1e-5, clip=0.8)
QUIET = replace(HOW, epsilon=1e13)
STAGES = 6
"""Two of each of three networks."""


def released(images: Images, grouping: Grouping, pool: Pool, public: Images, how: Release, seed: int = 0) -> Means:
    readers, stream = pool.readers(images.shape, CPU), torch.Generator().manual_seed(seed)
    return released_means(images, grouping, readers, pool.scales, public, how, stream)


def whole(means: Means, pool: Pool) -> Tensor:
    """(G, D) as one vector, each stage in units of its scatter."""
    pairs = zip(means, pool.scales, strict=True)
    return torch.cat([stage / scale**0.5 for own, scales in pairs for stage, scale in zip(own, scales, strict=True)], 1)


def slow(images: Images, grouping: Grouping, pool: Pool, public: Images, radius: float) -> Tensor:
    """One image after the other: its vector about its class's public mean, cut to the radius, and the groups' means."""
    readers = pool.readers(images.shape, CPU)
    known = whole([reader.of(public) for reader in readers], pool)
    found = torch.zeros(len(grouping), 0)
    rows, centres = [], []
    for at in range(len(images)):
        own = whole([reader.of(images.take(torch.tensor([at]))) for reader in readers], pool)
        alike = known[public.labels == images.labels[at]]
        centre = (alike if len(alike) else known).mean(0)
        away = own[0] - centre
        rows.append(away * min(1.0, radius / float(away.norm())))
        centres.append(centre)
    for group in range(len(grouping)):
        members = (grouping.of == group).nonzero()[:, 0].tolist()
        mean = sum((rows[at] for at in members), torch.zeros(())) / len(members) + centres[members[0]]
        found = mean[None] if group == 0 else torch.cat([found, mean[None]])
    return found


@pytest.mark.parametrize("clip", [0.3, 50.0])
def test_without_noise_they_are_the_means_of_clipped_vectors(
    private: Images, public: Images, pool: Pool, clip: float
) -> None:
    some = private.take(torch.arange(8))
    some = Images(some.pixels, torch.tensor([0, 1, 0, 1, 0, 1, 5, 5]))  # of class 5 nothing is public
    grouping = Grouping(torch.tensor([0, 1, 0, 1, 0, 1, 2, 2]), 2)
    found = whole(released(some, grouping, pool, public, replace(QUIET, clip=clip)), pool)
    expected = slow(some, grouping, pool, public, clip * math.sqrt(STAGES))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31), size=st.integers(2, 6))
def test_one_image_moves_its_group_by_no_more_than_is_reckoned_with_and_no_other(
    private: Images, public: Images, pool: Pool, seed: int, size: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    some = private.take(torch.arange(0, 4 * size, 2))  # of one class
    grouping = Grouping(torch.arange(2 * size) // size, size)
    pixels = some.pixels.clone()
    pixels[1] = torch.randint(256, pixels[1].shape, generator=draw, dtype=torch.uint8) // 255 * 255
    # The same stream draws the same noise, which the difference is free of.
    before, after = (
        whole(released(images, grouping, pool, public, HOW, seed), pool).double()
        for images in (some, Images(pixels, some.labels))
    )
    reckoned = 2 * HOW.radius(STAGES) / size
    moved = float((after[0] - before[0]).norm())
    assert 0 < moved <= reckoned * 1.001
    assert torch.equal(before[1], after[1])
    assert HOW.sigma(STAGES, size) == pytest.approx(gaussian_sigma(epsilon=1.0, delta=1e-5, sensitivity=reckoned))


def test_noise_is_as_large_as_is_said(private: Images, public: Images, pool: Pool) -> None:
    grouping = Grouping(torch.arange(80) // 40, 4)
    quiet, loud = (whole(released(private, grouping, pool, public, how), pool) for how in (QUIET, HOW))
    noise = (loud - quiet) / HOW.sigma(STAGES, 40)
    assert float(noise.std()) == pytest.approx(1, abs=0.1)
    assert float(noise[0] @ noise[1]) / noise.shape[1] == pytest.approx(0, abs=0.2)
    length = float((loud - quiet).norm(dim=1).mean()) / HOW.radius(STAGES)
    assert HOW.noise(pool.readers(private.shape, CPU), public, 40) == pytest.approx(length, rel=0.1)


DP = LatentPerturbation(k=5, steps=4, random_networks=1, trained_networks=1, grouping="anchors", epsilon=1.0)


def test_a_client_starts_from_what_is_released_and_says_what_the_noise_is(
    context: DefenseContext, private: Images, public: Images
) -> None:
    networks = DP.pretrain(context)
    assert networks is not None
    still = replace(DP, steps=0)
    prepared = still.prepare(private, context, networks, client=0)
    assert isinstance(prepared, PreparedShared)
    own, grouping = prepared.private, prepared.shared.grouping
    readers = networks.pool.readers(private.shape, CPU)
    release = still.release
    assert release is not None
    means = released_means(own, grouping, readers, networks.pool.scales, public, release, context.stream("condense", 0))
    judge = networks.pool.reader(private.shape, CPU)
    expected = public_starts(means[-1][-1], grouping.labels(own.labels), public, judge)
    assert torch.equal(prepared.shared.images, expected.pixels)
    numbers = prepared.diagnostics()
    assert numbers["epsilon"] == 1
    assert numbers["noise"] == release.noise(readers, public, int(numbers["k"]))
    again = DP.prepare(private, context, networks, client=0)
    other = replace(DP, epsilon=1e9).prepare(private, context, networks, client=0)
    assert isinstance(again, PreparedShared)
    assert isinstance(other, PreparedShared)
    assert not torch.equal(again.shared.images, other.shared.images)
    assert torch.equal(again.shared.grouping.of, other.shared.grouping.of)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"grouping": "mdav"}, "grouping is 'mdav'; with epsilon only anchors is allowed"),
        ({"start": "mean"}, "start is 'mean'; with epsilon only public is allowed"),
        ({"privacy_weight": 1.0}, r"privacy_weight is 1.0; with epsilon only 0 is allowed"),
        ({"epsilon": 0.0}, "epsilon is 0.0; it has to be above 0"),
        ({"delta": 1.0}, "delta is 1.0; it has to be below 1"),
        ({"delta": 0.0}, "delta is 0.0; it has to be above 0"),
        ({"clip": 0.0}, "clip is 0.0; it has to be above 0"),
        ({"grouping": "random"}, "grouping is 'random'; allowed: mdav, chance, anchors"),
    ],
)
def test_what_would_break_the_guarantee_is_refused(setting: dict[str, object], message: str) -> None:
    with pytest.raises(FedveilError, match=f"^latent: {message}"):
        replace(DP, **setting)  # type: ignore[arg-type]
