from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedveil.defense import DefenseContext, LatentPerturbation
from fedveil.defense.latent.code import Code, CodeReader
from fedveil.defense.latent.condense import Matching
from fedveil.defense.latent.grouping import Grouping, group_by_class
from fedveil.defense.latent.learner import Learner, Networks
from fedveil.defense.latent.pool import Pool
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError

CPU = torch.device("cpu")
HOW = Matching(steps=3, learning_rate=0.03, strength=1.0, spread=1.5)


def fitted(pool: Pool, public: Images, dimensions: int, kinds: tuple[str, ...] = ("flip", "shift")) -> Code:
    stream = torch.Generator().manual_seed(1)
    return Code.fitted(pool, public, kinds, dimensions=dimensions, device=CPU, stream=stream)


@pytest.fixture(scope="module")
def code(pool: Pool, public: Images) -> Code:
    return fitted(pool, public, 4)


def test_views_are_public_images_varied_and_their_codes_are_what_is_read(
    code: Code, pool: Pool, public: Images
) -> None:
    assert len(code.views) == len(public) * (1920 // len(public))
    assert torch.equal(code.views.labels, public.labels[code.origin])
    reader = CodeReader(code, pool.readers(public.shape, CPU, deepest=1))
    torch.testing.assert_close(reader.of(code.views)[0], code.codes, rtol=1e-3, atol=1e-3)
    plain = fitted(pool, public, 4, kinds=())
    assert torch.equal(plain.views.pixels, public.pixels)


def test_directions_are_orthonormal_and_no_more_than_can_be_told(pool: Pool, public: Images) -> None:
    few = public.take(torch.arange(6))
    for dimensions, found in ((1, 1), (3, 3), (50, 5)):
        basis = fitted(pool, few, dimensions, kinds=()).basis
        assert basis.shape[1] == found
        torch.testing.assert_close(basis.T @ basis, torch.eye(found), rtol=0, atol=1e-4)


def test_the_first_number_is_the_one_that_tells_two_classes_apart_best(code: Code) -> None:
    """Fisher's ratio of scatter between and within the classes, against that of every other number and of chance."""

    def ratio(values: torch.Tensor) -> float:
        zero, one = (values[code.views.labels == label] for label in (0, 1))
        return float((zero.mean() - one.mean()).square() / (zero.var() + one.var()))

    first, *others = (ratio(column) for column in code.codes.T)
    directions = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    chance = max(ratio(column) for column in (code.codes[:, 1:] @ directions[1:]).T)
    assert first > 5 * max(*others, chance)


def test_a_target_is_the_start_moved_by_what_goes_with_the_code(code: Code, pool: Pool, public: Images) -> None:
    readers = pool.readers(public.shape, CPU, deepest=1)
    starts = torch.tensor([0, 7, 40])
    begun = [reader.of(code.views.take(starts))[0] for reader in readers]
    stayed = code.targets(code.codes[starts], starts, readers)
    assert all(torch.equal(stage, own) for (stage,), own in zip(stayed, begun, strict=True))
    moved = code.targets(code.codes[starts] + torch.eye(4)[:1], starts, readers)
    features = readers[0].of(code.views)[0].double().numpy()
    slopes = np.linalg.lstsq(code.codes.double().numpy(), features - features.mean(0), rcond=None)[0]
    step = (moved[0][0] - begun[0])[0].double().numpy()
    assert np.linalg.norm(step - slopes[0]) < 0.02 * np.linalg.norm(slopes[0])


def test_a_start_is_the_nearest_view_of_the_class_and_of_the_public_images_allowed(code: Code, public: Images) -> None:
    wanted = code.codes[torch.tensor([3, 90])] + 1e-5
    labels = code.views.labels[torch.tensor([3, 90])]
    assert torch.equal(code.codes[code.starts(wanted, labels, None)], code.codes[torch.tensor([3, 90])])
    others = code.starts(wanted, 1 - labels, None)
    assert torch.equal(code.views.labels[others], 1 - labels)
    allowed = torch.zeros(2, len(public), dtype=torch.bool)
    allowed[:, 5] = True
    assert code.origin[code.starts(wanted, labels, allowed)].tolist() == [5, 5]
    # Of class 7 there is none, so that any will do.
    assert torch.equal(code.codes[code.starts(wanted[:1], torch.tensor([7]), None)], code.codes[3:4])


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31), k=st.integers(2, 5), count=st.integers(5, 40))
def test_whoever_else_is_there_and_in_any_order_a_groups_image_is_the_same(
    code: Code, pool: Pool, public: Images, private: Images, seed: int, k: int, count: int
) -> None:
    """k-anonymity, with a code between the group and its image."""
    learner = Learner(HOW, Networks(pool, None, code), public, CPU)
    draw = torch.Generator().manual_seed(seed)
    some = private.take(torch.randperm(len(private), generator=draw)[:count])
    some = Images(some.pixels, some.labels * 0 + seed % 2)
    grouping = group_by_class(some.floats().flatten(1), some.labels, k)
    whole = learner.learn(some, grouping, None, None, torch.Generator().manual_seed(3))
    group = int(torch.randint(len(grouping), (1,), generator=draw))
    own = (grouping.of == group).nonzero()[:, 0]
    own = own[torch.randperm(len(own), generator=draw)]
    alone = Grouping(torch.zeros_like(own), k)
    (found,) = learner.learn(some.take(own), alone, None, None, torch.Generator().manual_seed(3))
    assert torch.equal(found, whole[group])


def test_images_show_no_more_than_the_mean_code(code: Code, pool: Pool, public: Images, private: Images) -> None:
    """Two groups whose images differ, and whose mean codes are made equal, become the same image."""

    class Blind(CodeReader):
        def of(self, images: Images) -> list[torch.Tensor]:
            return [super().of(images)[0] * 0 + code.codes[11]]

    class Blinded(Networks):
        def shown(self, image_shape: tuple[int, int, int], device: torch.device) -> list[CodeReader]:
            return [Blind(code, self.readers(image_shape, device))]

    grouping = Grouping(torch.tensor([0, 0, 0, 1, 1, 1]), 3)
    six = Images(private.pixels[:6], private.labels[:6] * 0)
    networks = Blinded(pool, None, code)
    found = Learner(HOW, networks, public, CPU).learn(six, grouping, None, None, torch.Generator().manual_seed(3))
    assert torch.equal(found[0], found[1])
    seeing = Learner(HOW, Networks(pool, None, code), public, CPU)
    found = seeing.learn(six, grouping, None, None, torch.Generator().manual_seed(3))
    assert not torch.equal(found[0], found[1])


def test_of_few_numbers_the_same_epsilon_takes_less_noise(context: DefenseContext, private: Images) -> None:
    shown = {}
    for dimensions in (None, 4):
        defense = LatentPerturbation(
            k=4, steps=2, dimensions=dimensions, epsilon=2.0, grouping="anchors", random_networks=1, trained_networks=1
        )
        prepared = defense.prepare(private, context, defense.pretrain(context), client=0)
        shown[dimensions] = prepared.diagnostics()["noise"]
    assert shown[4] < 0.2 * shown[None]


def test_numbers_and_starts_that_are_not_allowed(context: DefenseContext) -> None:
    with pytest.raises(FedveilError, match="dimensions is 0"):
        LatentPerturbation(dimensions=0)
    with pytest.raises(FedveilError, match="with dimensions only public is allowed"):
        LatentPerturbation(dimensions=8, start="mean")
    assert replace(LatentPerturbation(), dimensions=8).dimensions == 8


def test_groups_by_chance_hold_k_of_a_class_and_are_drawn(context: DefenseContext, private: Images) -> None:
    defense = LatentPerturbation(k=4, steps=0, grouping="chance", random_networks=1, trained_networks=1)
    networks = defense.pretrain(context)
    assert networks is not None
    draws = [
        defense.share(
            private, torch.Generator().manual_seed(seed), networks=networks, public=context.public, device=CPU
        ).grouping
        for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0].of, draws[1].of)
    assert not torch.equal(draws[0].of, draws[2].of)
    assert all(4 <= size <= 7 for size in draws[0].sizes.tolist())
    assert all(len(private.labels[draws[0].of == group].unique()) == 1 for group in range(len(draws[0])))
