from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedveil.fl.data import ImageData, Images, TrainSplit, load_data, pooled, split_train
from fedveil.fl.errors import FedveilError

Row = tuple[int, int, int]
"""The picture, its label and its group."""

ROWS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2), st.integers(0, 9)), min_size=4, max_size=50)


def numbered(labels: list[int], groups: list[int] | None = None, pictures: list[int] | None = None) -> Images:
    """Images whose first pixels are their picture's number, which is their own if none is given."""
    numbers = torch.arange(len(labels)) if pictures is None else torch.tensor(pictures)
    pixels = torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = numbers % 256, numbers // 256
    return Images(pixels, torch.tensor(labels), None if groups is None else torch.tensor(groups))


def made_of(rows: list[Row], grouped: bool) -> Images:
    pictures, labels, groups = (list(column) for column in zip(*rows, strict=True))
    return numbered(labels, groups if grouped else None, pictures)


def numbers(images: Images) -> list[int]:
    return (images.pixels[:, 0, 0, 0].long() + 256 * images.pixels[:, 0, 0, 1].long()).tolist()


def groups_of(images: Images) -> set[int]:
    return set() if images.groups is None else set(images.groups.tolist())


def counts(images: Images) -> list[int]:
    return torch.bincount(images.labels).tolist()


def split(images: Images, public: float = 0.2, auxiliary: float = 0.3, seed: int = 0) -> TrainSplit:
    return split_train(images, public_fraction=public, auxiliary_fraction=auxiliary, seed=seed)


def parts_of(found: TrainSplit) -> list[Images]:
    return [found.public, found.auxiliary, found.private]


def test_both_fractions_are_of_the_whole_of_each_class() -> None:
    images = numbered([0] * 100 + [1] * 40)
    found = split(images, 0.05, 0.2)
    # 20 % of what public images leave would be 19 and 8.
    assert [counts(part) for part in parts_of(found)] == [[5, 2], [20, 8], [75, 30]]
    assert sorted(n for part in parts_of(found) for n in numbers(part)) == list(range(140))
    assert all(numbers(part) == sorted(numbers(part)) for part in parts_of(found))


def test_few_public_images_of_many_are_spread_over_the_classes() -> None:
    found = split(numbered([label for label in range(10) for _ in range(1200)]), 0.005, 0.2)
    assert counts(found.public) == [6] * 10
    assert counts(found.auxiliary) == [240] * 10


def test_each_part_has_each_class_however_small_the_fraction() -> None:
    found = split(numbered([0] * 100 + [1] * 3), 0.001, 0.02)
    assert [counts(part) for part in parts_of(found)] == [[1, 1], [2, 1], [97, 1]]


def test_the_seed_decides_and_the_auxiliary_fraction_does_not_move_public_images() -> None:
    images = numbered([0] * 50 + [1] * 20)
    base = split(images, seed=3)
    assert [numbers(p) for p in parts_of(split(images, seed=3))] == [numbers(p) for p in parts_of(base)]
    assert numbers(split(images, seed=4).public) != numbers(base.public)
    assert numbers(split(images, auxiliary=0.5, seed=3).public) == numbers(base.public)


def test_groups_are_moved_whole() -> None:
    # Class 0 in five groups of four, class 1 in five groups of two.
    groups = [g for g in range(5) for _ in range(4)] + [g for g in range(5, 10) for _ in range(2)]
    found = split(numbered([0] * 20 + [1] * 10, groups), 0.4, 0.15)
    # 8 of 20 wanted: two groups of four. 3 of 20: one, off by 1. 1.5 of 10: one group of two, off by 0.5.
    assert [counts(part) for part in parts_of(found)] == [[8, 4], [4, 2], [8, 4]]
    assert [len(groups_of(part)) for part in parts_of(found)] == [4, 2, 4]


def test_a_class_of_large_groups_still_gives_its_smallest_one() -> None:
    # One image of class 1 would be wanted, but its groups are of 3, 5 and 6.
    groups = [0] * 3 + [1] * 5 + [2] * 6 + [10 + i for i in range(10)]
    found = split(numbered([1] * 14 + [0] * 10, groups), 0.1, 0.1)
    assert counts(found.public) == [1, 3]
    assert counts(found.auxiliary) == [1, 5]


def test_copies_of_a_picture_stay_together_and_none_is_lost() -> None:
    # Every picture of class 0 is there twice, as in an oversampled class; the rest is unique.
    images = numbered([0] * 40 + [1] * 20, pictures=[*range(20), *range(20), *range(40, 60)])
    found = split(images, 0.2, 0.3)
    assert [counts(part) for part in parts_of(found)] == [[8, 4], [12, 6], [20, 10]]
    assert not set(numbers(found.public)) & set(numbers(found.private))


def test_a_copy_in_a_later_group_is_left_out_and_does_not_tie_the_groups() -> None:
    # Ten patients with four images each; the first image of each is the same black one.
    groups = [g for g in range(10) for _ in range(4)]
    pictures = [0 if i % 4 == 0 else i for i in range(40)]
    found = split(numbered([0, 1] * 20, groups, pictures), 0.2, 0.3)
    assert sum(map(len, parts_of(found))) == 31
    assert Counter(n for part in parts_of(found) for n in numbers(part))[0] == 1
    assert [len(groups_of(part)) for part in parts_of(found)] == [2, 3, 5]


@pytest.mark.parametrize("groups", [None, [0, 1, 2, 3, 4, 4, 5]])
def test_a_class_that_is_too_small_for_all_parts_is_an_error(groups: list[int] | None) -> None:
    labels = [0, 0, 0, 0, 1, 1] if groups is None else [0, 0, 0, 0, 1, 1, 1]
    with pytest.raises(FedveilError, match=r"data\.public_fraction: class 1 has 2 groups .* allowed: at least 3"):
        split(numbered(labels, groups))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_fractions_out_of_range(fraction: float) -> None:
    images = numbered([0, 0, 1, 1])
    for key, given_ in {"data.public_fraction": (fraction, 0.1), "data.auxiliary_fraction": (0.1, fraction)}.items():
        with pytest.raises(FedveilError, match=f"^{key} is .*; allowed: above 0 and below 1$"):
            split(images, *given_)
    with pytest.raises(FedveilError, match=r"0\.6 and data\.auxiliary_fraction 0\.4 leave clients nothing"):
        split(images, 0.6, 0.4)


def units_by_class(images: Images) -> dict[int, set[int]]:
    """The groups of each class, or its distinct pictures, after copies in later groups are left out."""
    found: dict[int, set[int]] = {label: set() for label in images.labels.tolist()}
    for row in kept_rows(images):
        found[row[1]].add(row[0] if images.groups is None else row[2])
    return found


def kept_rows(images: Images) -> list[Row]:
    groups = [-1] * len(images) if images.groups is None else images.groups.tolist()
    first: dict[int, int] = {}
    rows = list(zip(numbers(images), images.labels.tolist(), groups, strict=True))
    return [row for row in rows if first.setdefault(row[0], row[2]) == row[2]]


@given(ROWS, st.floats(0.02, 0.6), st.floats(0.02, 0.35), st.booleans())
def test_the_laws_of_a_split(rows: list[Row], public: float, auxiliary: float, grouped: bool) -> None:
    images = made_of(rows, grouped)
    units = units_by_class(images)
    try:
        found = split(images, public, auxiliary)
    except FedveilError:
        mixed = sum(map(len, units.values())) > len(set().union(*units.values()))
        assert mixed or min(map(len, units.values())) < 3
        return
    parts = parts_of(found)
    for index, part in enumerate(parts):
        assert set(part.labels.tolist()) == set(images.labels.tolist())
        for other in parts[index + 1 :]:
            assert not set(numbers(part)) & set(numbers(other))
            assert not groups_of(part) & groups_of(other)
    assert Counter(row for part in parts for row in kept_rows(part)) == Counter(kept_rows(images))


@given(st.lists(st.integers(3, 60), min_size=1, max_size=4), st.floats(0.02, 0.6), st.floats(0.02, 0.35))
def test_fractions_of_single_pictures_are_exact(sizes: list[int], public: float, auxiliary: float) -> None:
    images = numbered([label for label, size in enumerate(sizes) for _ in range(size)])
    found = split(images, public, auxiliary)
    for part, fraction in ((found.public, public), (found.auxiliary, auxiliary)):
        for have, size in zip(counts(part), sizes, strict=True):
            assert abs(have - fraction * size) <= 0.5 + 1e-9 or have == 1 or size - have <= 3


def data_of(train: Images, val: Images, test: Images) -> ImageData:
    return ImageData("own", train, val, test, ("a", "b"), published=False, notes=("first",))


def test_a_pool_keeps_proportions_and_leaves_copies_out() -> None:
    # 60, 20 and 20 of each class; test holds ten copies of training pictures.
    train, val = numbered([0, 1] * 60), numbered([0, 1] * 20, pictures=list(range(120, 160)))
    test = numbered([0, 1] * 20, pictures=[*range(160, 190), *range(10)])
    found = pooled(data_of(train, val, test), seed=0)
    # 95 distinct pictures of each class: 19 are a fifth.
    assert [counts(part) for part in (found.train, found.val, found.test)] == [[57, 57], [19, 19], [19, 19]]
    everything = [n for part in (found.train, found.val, found.test) for n in numbers(part)]
    assert sorted(everything) == list(range(190))
    assert found.notes[0] == "first"
    assert "10 copies" in found.notes[1]
    assert numbers(pooled(data_of(train, val, test), seed=1).test) != numbers(found.test)


def test_a_pool_without_val_has_none_afterwards() -> None:
    train, test = numbered([0, 1] * 8), numbered([0, 1] * 2, pictures=list(range(16, 20)))
    found = pooled(data_of(train, train.take(torch.zeros(0, dtype=torch.int64)), test), seed=0)
    assert [len(part) for part in (found.train, found.val, found.test)] == [16, 0, 4]


def test_a_pool_of_a_class_too_small_or_of_half_grouped_splits_is_refused() -> None:
    train, val, test = (numbered([0, 0, 0], pictures=[i, i + 1, i + 2]) for i in (0, 3, 6))
    rare = data_of(replace(train, labels=torch.tensor([0, 0, 1])), val, test)
    with pytest.raises(FedveilError, match=r"^data\.pool \(test\): class 1 has 1 groups"):
        pooled(rare, seed=0)
    grouped = numbered([0, 1, 0, 1], groups=[0, 1, 2, 3])
    with pytest.raises(FedveilError, match=r"^data\.pool: some splits of own have groups"):
        pooled(data_of(grouped, val, test), seed=0)


@given(ROWS, ROWS, ROWS)
def test_the_laws_of_a_pool_of_groups(train: list[Row], val: list[Row], test: list[Row]) -> None:
    data = data_of(*(made_of(rows, grouped=True) for rows in (train, val, test)))
    try:
        found = pooled(data, seed=0)
    except FedveilError:
        units = units_by_class(made_of([*train, *val, *test], grouped=True))
        assert min(map(len, units.values())) < 3 or sum(map(len, units.values())) > len(set().union(*units.values()))
        return
    parts = [found.train, found.val, found.test]
    assert all(not groups_of(a) & groups_of(b) for a, b in ((parts[0], parts[1]), (parts[0], parts[2]), parts[1:]))
    assert sorted(n for part in parts for n in numbers(part)) == sorted({row[0] for row in (*train, *val, *test)})
    classes = {row[1] for row in (*train, *val, *test)}
    assert all(set(part.labels.tolist()) <= classes for part in parts)


def test_pooling_the_brain_keeps_its_blocks_whole_and_its_sizes() -> None:
    data, found = load_data("mni152"), load_data("mni152", pool=True)
    for before, after in ((data.train, found.train), (data.val, found.val), (data.test, found.test)):
        assert abs(len(before) - len(after)) <= 6
    assert not groups_of(found.train) & groups_of(found.test)
    assert found.notes
