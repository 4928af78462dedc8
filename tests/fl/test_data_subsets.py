import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedveil.fl.data import Images
from fedveil.fl.data.subsets import limited, stratified
from fedveil.fl.errors import FedveilError


def numbered(labels: list[int]) -> Images:
    """Images whose first pixel is their own number, so that they can be told apart."""
    pixels = torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.arange(len(labels))
    return Images(pixels, torch.tensor(labels))


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
