from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedveil.defense.latent.grouping import Grouping, digests, group_by_class, microaggregate
from fedveil.fl.errors import FedveilError

SEEDS = st.integers(0, 2**31)


def drawn(seed: int, count: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Points without equal distances, and labels that are as uneven as chance has it."""
    stream = torch.Generator().manual_seed(seed)
    share = torch.rand(classes, generator=stream).square() + 0.01
    labels = torch.multinomial(share, count, replacement=True, generator=stream)
    return torch.randn((count, 4), generator=stream, dtype=torch.float64), labels


def as_sets(of: Tensor) -> set[frozenset[int]]:
    return {frozenset((of == group).nonzero()[:, 0].tolist()) for group in of.unique().tolist() if group >= 0}


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 60), st.integers(1, 7))
def test_each_class_of_k_or_more_is_wholly_in_groups_of_k_to_2k_less_1(seed: int, count: int, k: int) -> None:
    features, labels = drawn(seed, count)
    grouping = group_by_class(features, labels, k)
    for label in labels.unique().tolist():
        own = grouping.of[labels == label]
        assert bool((own >= 0).all()) == (len(own) >= k)
        assert bool((own < 0).all()) == (len(own) < k)
    sizes = grouping.sizes.tolist()
    assert all(k <= size <= 2 * k - 1 for size in sizes)
    # One image in one group, groups of one class, numbers without gaps.
    assert sum(sizes) == int((grouping.of >= 0).sum())
    assert grouping.of[grouping.of >= 0].unique().tolist() == list(range(len(grouping)))
    assert all(len(labels[grouping.of == group].unique()) == 1 for group in range(len(grouping)))


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 60), st.integers(1, 7))
def test_the_order_of_images_changes_nothing_but_the_numbers(seed: int, count: int, k: int) -> None:
    features, labels = drawn(seed, count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    one = group_by_class(features, labels, k)
    other = group_by_class(features[order], labels[order], k)
    back = torch.empty_like(order)
    back[order] = torch.arange(count)
    assert as_sets(one.of) == as_sets(other.of[back])


def slow_mdav(points: list[tuple[float, ...]], k: int) -> set[frozenset[int]]:
    """As the paper has it, with lists."""

    def distance(a: tuple[float, ...], b: tuple[float, ...]) -> float:
        return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))

    left, groups = list(range(len(points))), set()

    def far(place: tuple[float, ...]) -> tuple[float, ...]:
        return points[max(left, key=lambda at: distance(points[at], place))]

    def centre() -> tuple[float, ...]:
        return tuple(sum(points[at][d] for at in left) / len(left) for d in range(len(points[0])))

    def take(place: tuple[float, ...]) -> None:
        near = sorted(left, key=lambda at: distance(points[at], place))[:k]
        groups.add(frozenset(near))
        for at in near:
            left.remove(at)

    while len(left) >= 3 * k:
        first = far(centre())
        take(first)
        take(far(first))
    if len(left) >= 2 * k:
        take(far(centre()))
    groups.add(frozenset(left))
    return groups


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 5), st.integers(0, 25))
def test_it_is_mdav(seed: int, k: int, more: int) -> None:
    features, _ = drawn(seed, k + more)
    expected = slow_mdav([tuple(row) for row in features.tolist()], k)
    assert as_sets(microaggregate(features, k)) == expected


def test_mdav_by_hand() -> None:
    # The centre is 5.5 and 12 the farthest point from it: its pair is 11. Farthest from 12 is 0, with 1; 4 and 5 are left.
    points = torch.tensor([[0.0], [1.0], [4.0], [5.0], [11.0], [12.0]])
    assert microaggregate(points, 2).tolist() == [1, 1, 2, 2, 0, 0]


@settings(max_examples=60)
@given(SEEDS, st.integers(2, 40), st.integers(1, 5))
def test_means_show_the_order_of_images_in_no_bit(seed: int, count: int, groups: int) -> None:
    stream = torch.Generator().manual_seed(seed)
    of = torch.randint(groups, (count,), generator=stream)
    of = of.unique(return_inverse=True)[1]
    # Sizes from 1e-12 to 1e12: sums in another order differ in their last bits.
    values = torch.randn((count, 3, 2), generator=stream, dtype=torch.float64)
    values *= 10.0 ** torch.randint(-12, 13, values.shape, generator=stream)
    order = torch.randperm(count, generator=stream)
    one, other = Grouping(of, 1).means(values), Grouping(of[order], 1).means(values[order])
    assert torch.equal(one, other)
    expected = torch.stack([values[of == group].mean(0) for group in range(len(one))])
    torch.testing.assert_close(one, expected, rtol=1e-9, atol=1e-3)
    # Nor does it matter who else is there.
    alone = Grouping(torch.where(of == 0, 0, -1), 1).means(values)
    assert torch.equal(alone[0], one[0])


def test_means_by_hand_leave_out_whoever_is_in_no_group() -> None:
    grouping = Grouping(torch.tensor([1, -1, 0, 1, 0]), 2)
    means = grouping.means(torch.tensor([[1.0], [100.0], [2.0], [3.0], [6.0]]))
    assert means.tolist() == [[4.0], [2.0]]
    assert grouping.sizes.tolist() == [2, 2]
    assert len(grouping) == 2
    none = Grouping(torch.tensor([-1, -1]), 2)
    assert none.means(torch.ones(2, 1, 3, 3)).shape == (0, 1, 3, 3)


def test_groups_that_come_later_are_numbered_behind() -> None:
    both = Grouping(torch.tensor([0, 0, 1, 1]), 2).followed_by(Grouping(torch.tensor([-1, 0, 0, 0]), 3))
    assert both.of.tolist() == [0, 0, 1, 1, -1, 2, 2, 2]
    assert both.k == 2


def test_digests_tell_rows_apart() -> None:
    rows = torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]])
    one, other, again = digests(rows)
    assert one == again != other


def test_what_cannot_be_grouped_is_refused() -> None:
    with pytest.raises(FedveilError, match="group 1 has 1 images; at least 2"):
        Grouping(torch.tensor([0, 0, 1]), 2)
    with pytest.raises(FedveilError, match="k is 0; it has to be at least 1"):
        group_by_class(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64), 0)
    with pytest.raises(FedveilError, match="k is 4, but there are 3 images to group"):
        microaggregate(torch.zeros(3, 1), 4)


def test_equal_points_are_grouped_too() -> None:
    assert sorted(group_by_class(torch.zeros(7, 2), torch.zeros(7, dtype=torch.int64), 3).sizes.tolist()) == [3, 4]
