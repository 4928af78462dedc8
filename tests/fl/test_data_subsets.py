import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedveil.fl.data import Images, split_public
from fedveil.fl.data.subsets import limited, stratified
from fedveil.fl.errors import FedveilError


def numbered(labels: list[int], groups: list[int] | None = None) -> Images:
    """Images whose first pixel is their own number, so that they can be told apart."""
    pixels = torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.arange(len(labels))
    return Images(pixels, torch.tensor(labels), None if groups is None else torch.tensor(groups))


def numbers(images: Images) -> list[int]:
    return images.pixels[:, 0, 0, 0].tolist()


def counts(labels: torch.Tensor) -> list[int]:
    return torch.bincount(labels).tolist()


def test_stratified_gives_the_largest_remainders_the_rest() -> None:
    labels = torch.tensor([0] * 50 + [1] * 34 + [2] * 16)
    # Quotas of 10: 5.0, 3.4, 1.6; the tenth image goes to class 2.
    chosen = stratified(labels, 10, torch.Generator().manual_seed(0))
    assert counts(labels[chosen]) == [5, 3, 2]
    assert chosen.tolist() == sorted(set(chosen.tolist()))


def test_stratified_keeps_a_rare_class() -> None:
    labels = torch.tensor([0] * 97 + [1] * 2 + [2])
    assert counts(labels[stratified(labels, 3, torch.Generator().manual_seed(0))]) == [1, 1, 1]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.data())
def test_stratified_holds_its_promises(labels: list[int], data: st.DataObject) -> None:
    tensor = torch.tensor(labels)
    count = data.draw(st.integers(len(set(labels)), len(labels)))
    chosen = stratified(tensor, count, torch.Generator().manual_seed(1))
    assert len(set(chosen.tolist())) == count
    assert set(tensor[chosen].tolist()) == set(labels)


def test_limited_is_seeded_and_keeps_the_order() -> None:
    images = numbered([0, 1] * 40)
    first, again, other = (limited(images, 10, seed, "train") for seed in (0, 0, 1))
    assert numbers(first) == numbers(again) != numbers(other)
    assert numbers(first) == sorted(numbers(first))
    assert counts(first.labels) == [5, 5]
    assert limited(images, 80, 0, "train") is images


def test_limit_below_the_classes_is_refused() -> None:
    with pytest.raises(FedveilError, match=r"data\.limit is 2; allowed: 3 and above"):
        limited(numbered([0, 1, 2, 0]), 2, 0, "train")


def test_public_images_are_the_fraction_of_each_class() -> None:
    images = numbered([0] * 50 + [1] * 20)
    public, private = split_public(images, 0.2, seed=3)
    assert counts(public.labels) == [10, 4]
    assert counts(private.labels) == [40, 16]
    assert sorted(numbers(public) + numbers(private)) == list(range(70))
    assert numbers(split_public(images, 0.2, seed=3)[0]) == numbers(public)
    assert numbers(split_public(images, 0.2, seed=4)[0]) != numbers(public)


def test_groups_are_moved_whole() -> None:
    # Class 0 in five groups of four, class 1 in four groups of two.
    groups = [g for g in range(5) for _ in range(4)] + [g for g in range(5, 9) for _ in range(2)]
    public, private = split_public(numbered([0] * 20 + [1] * 8, groups), 0.4, seed=0)
    assert public.groups is not None
    assert private.groups is not None
    assert not set(public.groups.tolist()) & set(private.groups.tolist())
    # 8 of 20 wanted: two groups of four. 3.2 of 8 wanted: two groups of two (off by 0.8; one by 1.2).
    assert counts(public.labels) == [8, 4]


@pytest.mark.parametrize("grouped", [False, True])
def test_public_images_have_no_twin_among_the_private(grouped: bool) -> None:
    # Every picture of class 0 is there twice, and three of class 1 are copies of class 0's; the rest is unique.
    labels = [0] * 40 + [1] * 20
    images = numbered(labels, list(range(60)) if grouped else None)
    images.pixels[20:40] = images.pixels[:20].clone()
    images.pixels[40:43] = images.pixels[:3].clone()
    public, private = split_public(images, 0.5, seed=1)
    assert not set(numbers(public)) & set(numbers(private))
    assert set(public.labels.tolist()) == {0, 1}
    # Of private images none is lost, twins or not.
    assert counts(private.labels) == [20, 10]
    assert 0 < len(public) < 30
    assert set(numbers(images)) == set(numbers(public)) | set(numbers(private))
    if grouped:
        assert public.groups is not None
        assert len(public.groups) == len(public)


def test_a_class_of_nothing_but_twins_keeps_one_public_image() -> None:
    images = numbered([0] * 10 + [1] * 10)
    images.pixels[:10] = 200
    public, private = split_public(images, 0.4, seed=0)
    assert counts(public.labels) == [1, 4]
    assert counts(private.labels) == [6, 6]


def test_a_class_of_large_groups_still_gets_its_smallest_one() -> None:
    # One image of class 1 would be wanted, but its groups are of 3 and 5.
    groups = [0] * 3 + [1] * 5 + [10 + i for i in range(10)]
    public, _ = split_public(numbered([1] * 8 + [0] * 10, groups), 0.1, seed=0)
    assert counts(public.labels) == [1, 3]


@pytest.mark.parametrize("groups", [None, [0, 1, 2, 3, 3]])
def test_a_class_that_cannot_be_on_both_sides_is_an_error(groups: list[int] | None) -> None:
    labels = [0, 0, 0, 1] if groups is None else [0, 0, 0, 1, 1]
    with pytest.raises(FedveilError, match="class 1 has"):
        split_public(numbered(labels, groups), 0.5, seed=0)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(FedveilError, match="above 0 and below 1"):
        split_public(numbered([0, 0, 1, 1]), fraction, seed=0)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=4, max_size=50),
    st.floats(0.05, 0.95),
    st.booleans(),
)
def test_carving_holds_its_promises(rows: list[tuple[int, int]], fraction: float, grouped: bool) -> None:
    labels = [label for label, _ in rows]
    images = numbered(labels, [group for _, group in rows] if grouped else None)
    try:
        public, private = split_public(images, fraction, seed=5)
    except FedveilError:
        return
    assert sorted(numbers(public) + numbers(private)) == list(range(len(rows)))
    assert set(public.labels.tolist()) == set(private.labels.tolist()) == set(labels)
    if public.groups is not None and private.groups is not None:
        assert not set(public.groups.tolist()) & set(private.groups.tolist())
