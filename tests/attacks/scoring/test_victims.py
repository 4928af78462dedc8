from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedveil.attacks.scoring import Gallery
from fedveil.attacks.scoring.victims import VictimBatch, draw_victims
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError


def shards_of(*labels: list[int]) -> list[Images]:
    """One shard per list of labels. No two images are alike: the first pixel is the shard, the second the image."""
    shards = []
    for client, own in enumerate(labels):
        pixels = torch.zeros(len(own), 1, 1, 2, dtype=torch.uint8)
        pixels[:, 0, 0, 0] = client
        pixels[:, 0, 0, 1] = torch.arange(len(own))
        shards.append(Images(pixels, torch.tensor(own, dtype=torch.int64)))
    return shards


def draw(shards: list[Images], **changes: Any) -> tuple[tuple[VictimBatch, ...], Gallery]:
    return draw_victims(shards, **{"victims": 6, "batch_size": 2, "clients": 2, "gallery": 9, "seed": 5, **changes})


def keys(batches: tuple[VictimBatch, ...]) -> list[tuple[int, int]]:
    return [(row[0], row[1]) for batch in batches for row in batch.images.pixels.flatten(1).tolist()]


def per_class(batches: tuple[VictimBatch, ...]) -> Counter[int]:
    return Counter(label for batch in batches for label in batch.labels.tolist())


def test_victims_are_distinct_and_lie_in_the_gallery_where_stated() -> None:
    shards = shards_of([0, 1, 0, 1, 0], [1, 0, 1, 0, 1, 0, 1], [0, 0, 1, 1])
    batches, gallery = draw(shards)
    assert [b.number for b in batches] == [0, 1, 2]
    assert [b.client for b in batches] == [0, 1, 0]
    assert [b.victims for b in batches] == [(0, 1), (2, 3), (4, 5)]
    assert all(set(b.labels.tolist()) == {0, 1} for b in batches)
    assert len(set(keys(batches))) == 6
    assert gallery.pixels.shape == (9, 1, 1, 2)
    for batch in batches:
        assert torch.equal(gallery.pixels[batch.gallery_index], batch.images.pixels)
    assert len({str(image.tolist()) for image in gallery.pixels}) == 9


def test_classes_come_before_turns() -> None:
    # the second client holds class 0 alone; without it every third victim would be missing
    shards = shards_of([1, 2] * 10, [0] * 10)
    batches, _ = draw(shards, batch_size=1)
    assert per_class(batches) == {0: 2, 1: 2, 2: 2}
    assert Counter(b.client for b in batches) == {0: 4, 1: 2}


def test_unbalanced_victims_follow_the_shards() -> None:
    batches, _ = draw(shards_of([0] * 30 + [1], [0] * 30 + [1]), victims=40, balanced=False)
    assert per_class(batches)[0] >= 38
    assert [b.client for b in batches] == [0, 1] * 10


def test_a_client_that_runs_out_of_images_drops_out() -> None:
    for balanced in (True, False):
        batches, _ = draw(shards_of([0, 1, 0], [1, 0] * 4), victims=8, balanced=balanced)
        assert [b.client for b in batches] == [0, 1, 1, 1]


def test_only_the_first_clients_are_audited_but_all_fill_the_gallery() -> None:
    shards = shards_of([0, 1, 0, 1], [0, 1, 1, 0])
    batches, gallery = draw(shards, victims=2, clients=1, gallery=100)
    assert {b.client for b in batches} == {0}
    everything = {str(image.tolist()) for shard in shards for image in shard.pixels}
    assert {str(image.tolist()) for image in gallery.pixels} == everything
    assert len(gallery.pixels) == 8


def test_the_gallery_holds_all_victims_even_if_asked_for_less() -> None:
    _, gallery = draw(shards_of([0, 1, 0, 1], [0, 1, 1, 0]), gallery=1)
    assert len(gallery.pixels) == 6


def test_the_seed_alone_chooses() -> None:
    shards = shards_of([0, 1] * 8, [1, 0] * 8)
    first, gallery = draw(shards)
    torch.rand(3)
    again, same = draw(shards)
    assert keys(first) == keys(again)
    assert torch.equal(gallery.pixels, same.pixels)
    assert keys(draw(shards, seed=6)[0]) != keys(first)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(
        FedveilError, match=r"audit.victims: 8 in batches of 2; the 2 audited client\(s\) have images for 6"
    ):
        draw(shards_of([0, 1, 0], [0, 1, 0, 1, 0]), victims=8)


CLASSES = st.lists(st.integers(0, 3), min_size=1, max_size=14)


@given(st.lists(CLASSES, min_size=1, max_size=4), st.integers(1, 3), st.integers(1, 4), st.data())
@settings(max_examples=80)
def test_laws_of_the_draw(labels: list[list[int]], size: int, clients: int, data: st.DataObject) -> None:
    shards = shards_of(*labels)
    clients = min(clients, len(shards))
    room = sum(len(own) // size for own in labels[:clients])
    number = data.draw(st.integers(0, room))
    if number == 0:
        return
    balanced = data.draw(st.booleans())
    batches, gallery = draw(
        shards, victims=number * size, batch_size=size, clients=clients, gallery=20, balanced=balanced
    )
    drawn = keys(batches)
    assert [len(b) for b in batches] == [size] * number
    assert len(set(drawn)) == len(drawn) == number * size
    assert {client for client, _ in drawn} <= set(range(clients))
    assert all({client for client, _ in keys((b,))} == {b.client} for b in batches)
    assert [v for b in batches for v in b.victims] == list(range(number * size))
    assert all(
        labels[client][index] == y for b in batches for (client, index), y in zip(keys((b,)), b.labels, strict=True)
    )
    assert torch.equal(gallery.pixels[: number * size], torch.cat([b.images.pixels for b in batches]))
    total = sum(map(len, labels))
    assert len(gallery.pixels) == min(total, max(20, number * size))
    assert len(torch.unique(gallery.pixels.flatten(1), dim=0)) == len(gallery.pixels)


@given(st.lists(CLASSES, min_size=1, max_size=4), st.data())
@settings(max_examples=80)
def test_single_victims_are_as_even_over_classes_as_any_choice_can_be(
    labels: list[list[int]], data: st.DataObject
) -> None:
    held = Counter(label for own in labels for label in own)
    victims = data.draw(st.integers(1, held.total()))
    batches, _ = draw(
        shards_of(*labels), victims=victims, batch_size=1, clients=len(labels), seed=data.draw(st.integers(0, 9))
    )
    # the oracle fills all classes to one level, as water would
    level = max(n for n in range(victims + 1) if sum(min(count, n) for count in held.values()) <= victims)
    found = per_class(batches)
    for label, count in held.items():
        assert found[label] in {min(count, level), min(count, level + 1)}


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(1, 6), st.integers(0, 99))
@settings(max_examples=60)
def test_with_enough_of_each_class_in_each_shard_classes_and_clients_are_even(
    classes: int, size: int, clients: int, number: int, seed: int
) -> None:
    shards = shards_of(*[list(range(classes)) * 30] * clients)
    batches, _ = draw(shards, victims=number * size, batch_size=size, clients=clients, seed=seed)
    found = [per_class(batches)[label] for label in range(classes)]
    assert max(found) - min(found) <= 1
    assert [b.client for b in batches] == [at % clients for at in range(number)]


def batch() -> VictimBatch:
    return VictimBatch(0, 0, (3, 4), Images(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])), (0, 1))


def test_a_batch_that_does_not_fit_together_is_refused() -> None:
    whole = replace(batch(), draws=(torch.zeros(2, 1, 4, 4),))
    assert len(whole) == 2
    assert whole.originals.shape == (2, 1, 4, 4)
    with pytest.raises(FedveilError, match="victims: expected 2 numbers, one per image, got 1"):
        replace(whole, victims=(3,))
    with pytest.raises(FedveilError, match="gallery: expected 2 numbers, one per image, got 3"):
        replace(whole, gallery=(0, 1, 2))
    with pytest.raises(FedveilError, match=r"trained on: expected \(2, 1, 4, 4\) as the originals, got \(2, 1, 2, 4\)"):
        replace(whole, draws=(*whole.draws, torch.zeros(2, 1, 2, 4)))
    with pytest.raises(FedveilError, match=r"trained on: expected values in \[0, 1\]"):
        replace(whole, draws=(torch.full((2, 1, 4, 4), 1.5),))
    assert replace(whole, gallery=None).gallery_index is None


def test_what_was_trained_on_is_the_mean_of_all_draws() -> None:
    assert batch().trained is None
    draws = tuple(torch.full((2, 1, 4, 4), value) for value in (0.0, 0.25, 0.5))
    assert replace(batch(), draws=draws).trained.unique().tolist() == [0.25]  # type: ignore[union-attr]
