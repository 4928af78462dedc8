from __future__ import annotations

import pytest
import torch

from fedveil.fl.data.images import ImageData, Images
from fedveil.fl.data.private_classes import with_classes
from fedveil.fl.data.splits import halved
from fedveil.fl.errors import FedveilError


def numbered(labels: list[int]) -> Images:
    """Each image's grey value is its place."""
    pixels = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return Images(pixels, torch.tensor(labels), torch.arange(len(labels)) // 2)


def data() -> ImageData:
    train = numbered([0, 1, 2, 3, 3, 2, 1, 0])
    return ImageData("x", train, numbered([1, 3]), numbered([2, 0, 1]), ("a", "b", "c", "d"), published=True)


def test_private_images_go_to_the_clients_and_all_others_to_the_attacker() -> None:
    kept, others = with_classes(data(), [3, 1])
    assert kept.classes == ("b", "d")
    assert kept.train.pixels[:, 0, 0, 0].tolist() == [1, 3, 4, 6]
    assert kept.train.labels.tolist() == [0, 1, 1, 0]
    assert kept.val.labels.tolist() == [0, 1]
    assert kept.test.pixels[:, 0, 0, 0].tolist() == [2]
    assert kept.train.groups is not None
    assert kept.train.groups.tolist() == [0, 1, 2, 3]
    assert others.pixels[:, 0, 0, 0].tolist() == [0, 2, 5, 7]
    assert others.labels.tolist() == [0, 1, 1, 0]


def test_classes_that_there_are_not_and_all_of_them_are_refused() -> None:
    with pytest.raises(FedveilError, match=r"data\.private_classes: given \[1, 4\]; allowed: 0 to 3"):
        with_classes(data(), [1, 4])
    with pytest.raises(FedveilError, match="given all 4 classes; allowed: at most 3"):
        with_classes(data(), [0, 1, 2, 3])


def test_halves_share_no_group_and_each_has_every_class() -> None:
    images = numbered([0, 0, 1, 1] * 6)
    one, other = halved(images, "half", seed=3)
    assert len(one) + len(other) == len(images)
    assert one.groups is not None
    assert other.groups is not None
    assert not set(one.groups.tolist()) & set(other.groups.tolist())
    assert set(one.labels.tolist()) == set(other.labels.tolist()) == {0, 1}
    assert abs(len(one) - len(other)) <= 4
    with pytest.raises(FedveilError, match=r"^mine: class 1 has 1 groups"):
        halved(numbered([0, 0, 0, 0, 1, 1]), "mine", seed=0)
