from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedveil.defense.latent.anchors import group_by_anchor

SEEDS = st.integers(0, 2**31)


def drawn(seed: int, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    features, anchors = torch.randn((count, 3), generator=stream), torch.randn((12, 3), generator=stream)
    labels = torch.randint(3, (count,), generator=stream)
    return features, labels, anchors, torch.arange(12) % 2  # of class 2 there is no anchor


def nearest(features: Tensor, anchors: Tensor) -> Tensor:
    return (features[:, None] - anchors[None]).square().sum(2).argmin(1)


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 80), st.integers(1, 7))
def test_groups_hold_whole_cells_of_one_class_and_no_fewer_than_k(seed: int, count: int, k: int) -> None:
    features, labels, anchors, classes = drawn(seed, count)
    grouping = group_by_anchor(features, labels, k, anchors, classes)
    assert all(size >= k for size in grouping.sizes.tolist())
    assert grouping.of[grouping.of >= 0].unique().tolist() == list(range(len(grouping)))
    for label in range(3):
        own = (labels == label).nonzero()[:, 0]
        assert bool((grouping.of[own] >= 0).all()) == (len(own) >= k or len(own) == 0)
        if label < 2 and len(own) >= k:
            cell = nearest(features[own], anchors[classes == label])
            for one in cell.unique():
                assert len(grouping.of[own[cell == one]].unique()) == 1
    for group in range(len(grouping)):
        assert len(labels[grouping.of == group].unique()) == 1


@settings(max_examples=60)
@given(SEEDS, st.integers(2, 60), st.integers(1, 5))
def test_an_image_that_is_replaced_by_one_of_its_cell_changes_no_group(seed: int, count: int, k: int) -> None:
    """What differential privacy counts on: who else is grouped with whom does not depend on an image, given its cell."""
    features, labels, anchors, classes = drawn(seed, count)
    before = group_by_anchor(features, labels, k, anchors, classes)
    row = seed % count
    places = anchors[classes == labels[row]] if labels[row] < 2 else torch.zeros(1, 3)
    others = 3 * torch.randn((400, 3), generator=torch.Generator().manual_seed(seed + 1))
    alike = others[nearest(others, places) == nearest(features[row : row + 1], places)]
    for other in alike[:3]:
        changed = features.clone()
        changed[row] = other
        assert torch.equal(group_by_anchor(changed, labels, k, anchors, classes).of, before.of)


@settings(max_examples=30)
@given(SEEDS, st.integers(2, 60), st.integers(1, 5))
def test_the_order_of_images_changes_nothing(seed: int, count: int, k: int) -> None:
    features, labels, anchors, classes = drawn(seed, count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    before = group_by_anchor(features, labels, k, anchors, classes)
    assert torch.equal(group_by_anchor(features[order], labels[order], k, anchors, classes).of, before.of[order])


def test_small_cells_join_the_nearest_one_by_hand() -> None:
    # Cells of 0, 1, 10 and 12: of 3, 1, 2 and 1 images. That of 1 joins 0's, then 12's joins 10's.
    anchors = torch.tensor([[0.0], [1.0], [10.0], [12.0]])
    features = torch.tensor([[-1.0], [0.1], [0.2], [1.2], [9.0], [10.0], [13.0]])
    labels = torch.zeros(7, dtype=torch.int64)
    found = group_by_anchor(features, labels, 2, anchors, torch.zeros(4, dtype=torch.int64))
    assert found.of.tolist() == [0, 0, 0, 0, 1, 1, 1]
    alone = group_by_anchor(features, labels, 1, anchors, torch.zeros(4, dtype=torch.int64))
    assert alone.of.tolist() == [0, 0, 0, 1, 2, 2, 3]
    whole = group_by_anchor(features, labels, 5, anchors, torch.zeros(4, dtype=torch.int64))
    assert whole.of.tolist() == [0] * 7
