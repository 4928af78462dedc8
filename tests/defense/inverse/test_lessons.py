from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fedveil.defense.base import Rehearsal
from fedveil.defense.inverse.lessons import (
    REHEARSALS,
    SHARE,
    DefendedLessons,
    Draws,
    RehearsedLessons,
    rehearsed_lessons,
)
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.seeding import torch_stream

CPU = torch.device("cpu")
Blobs = Callable[..., Images]
Rehearse = Callable[[Images, torch.Generator], Rehearsal]


def numbered(count: int, *, groups: bool = False) -> Images:
    """Images that show their number in every pixel; odd ones are of class 1."""
    at = torch.arange(count)
    pixels = at.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).clone()
    return Images(pixels, at % 2, at // 4 if groups else None)


class Watched:
    """A rehearsal that keeps even numbers and makes each darker by one, and what it was asked."""

    def __init__(self, kept: Callable[[int], bool] = lambda number: number % 2 == 0) -> None:
        self.sets: list[list[int]] = []
        self.kept = kept

    def __call__(self, images: Images, stream: torch.Generator) -> Rehearsal:
        numbers = images.pixels[:, 0, 0, 0].tolist()
        self.sets.append(numbers)
        at = torch.tensor([place for place, number in enumerate(numbers) if self.kept(number)], dtype=torch.int64)
        own = images.take(at)
        return Rehearsal(at, Images(own.pixels + 1, own.labels))


def lessons(auxiliary: Images, rehearse: Rehearse, *, artefacts: float = 0.0, seed: int = 1) -> RehearsedLessons:
    return rehearsed_lessons(auxiliary, rehearse, artefacts=artefacts, device=CPU, stream=torch_stream(seed, "lessons"))


def test_each_rehearsal_is_of_another_part_of_the_images() -> None:
    watched = Watched()
    lessons(numbered(100), watched)
    assert len(watched.sets) == REHEARSALS
    assert all(len(set(one)) == len(one) == round(SHARE * 100) for one in watched.sets)
    assert len({frozenset(one) for one in watched.sets}) == REHEARSALS


def test_originals_and_what_became_of_them_stay_together_and_held_out_ones_are_never_learnt_from() -> None:
    found = lessons(numbered(100), Watched())
    originals, became = found.pairs()
    assert torch.equal((became * 255).round().to(torch.uint8), originals.pixels + 1)
    assert set(originals.pixels[:, 0, 0, 0].tolist()) <= set(range(0, 100, 2))
    held, labels, shown = found.measured
    assert shown.shape == (1, *held.shape)
    torch.testing.assert_close(shown[0], held + 1 / 255)
    measured = {round(255 * grey) for grey in held[:, 0, 0, 0].tolist()}
    assert measured
    assert not measured & set(originals.pixels[:, 0, 0, 0].tolist())
    assert measured <= set(found.held_out.pixels[:, 0, 0, 0].tolist())
    assert labels.tolist() == [0] * len(held)
    # Held-out ones take part in the rehearsals: groups are as dense as a client's.
    watched = Watched()
    again = lessons(numbered(100), watched)
    assert set(again.held_out.pixels[:, 0, 0, 0].tolist()) & set(watched.sets[0])


def test_near_copies_are_held_out_together() -> None:
    found = lessons(numbered(100, groups=True), Watched())
    assert found.held_out.groups is not None
    assert found.train.groups is not None
    assert not set(found.held_out.groups.tolist()) & set(found.train.groups.tolist())


def test_a_batch_varies_both_alike(blobs: Blobs) -> None:
    auxiliary = blobs(60, 3)

    def darker(images: Images, stream: torch.Generator) -> Rehearsal:
        return Rehearsal(torch.arange(len(images)), Images(images.pixels // 2, images.labels))

    found = lessons(auxiliary, darker)
    at = torch.arange(12)
    x, y, seen = found.batch(at, torch_stream(2, "batch"), mirrored=(2, 3))
    plain = found.train.floats()[at]
    assert seen.shape == (1, *x.shape)
    assert torch.equal(y, found.train.labels[at])
    assert not torch.allclose(x, plain, atol=0.02)
    torch.testing.assert_close(seen[0], x / 2, atol=0.02, rtol=0)
    noisy = lessons(auxiliary, darker, artefacts=0.2)
    _, _, seen = noisy.batch(at, torch_stream(2, "batch"), mirrored=(2, 3))
    off = [float((one - two / 2).abs().max()) > 0.02 for one, two in zip(seen[0], x, strict=True)]
    assert off == [False, True] * 6


def test_with_too_few_images_all_are_learnt_from_and_measured_on() -> None:
    found = lessons(numbered(4), Watched(lambda number: True))
    assert len(found.held_out) == 4
    assert len(found.train) == len(found.measured[0]) > 0
    # So it is where the defence keeps none of those that are held out.
    held = set(lessons(numbered(100), Watched()).held_out.pixels[:, 0, 0, 0].tolist())
    for kept in (held.__contains__, lambda number: number not in held):
        found = lessons(numbered(100), Watched(kept))
        assert len(found.train) == len(found.measured[0]) > 0


def test_a_defence_that_keeps_nothing_teaches_nothing() -> None:
    with pytest.raises(FedveilError, match="the attacker's images are too few for this defence: it keeps none of them"):
        lessons(numbered(20), Watched(lambda number: False))


def test_it_is_a_function_of_its_stream() -> None:
    one, again, other = (lessons(numbered(100), Watched(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.train.pixels, again.train.pixels)
    assert not torch.equal(one.train.pixels, other.train.pixels)


def test_what_is_not_learnt_of_single_images_is_none_of_those_that_are() -> None:
    draws = Draws(lambda x, y, stream: x, 1, 1, 0.0)
    single = DefendedLessons(numbered(100), draws, device=CPU, stream=torch_stream(1, "lessons"))
    spared, shown = ({int(image[0, 0, 0]) for image in one.pixels} for one in single.unlearnt())
    learnt = {int(image[0, 0, 0]) for image in single.train.pixels}
    assert spared == shown == set(range(100)) - learnt
    assert spared
    assert learnt


def test_single_images_are_varied_first_and_defended_then(blobs: Blobs) -> None:
    seen: list[torch.Tensor] = []

    def defend(x: torch.Tensor, y: torch.Tensor | None, stream: torch.Generator) -> torch.Tensor:
        seen.append(x)
        return 1 - x

    auxiliary = blobs(40, 3)
    found = DefendedLessons(auxiliary, Draws(defend, 1, 1, 0.0), device=CPU, stream=torch_stream(1, "lessons"))
    x, _, draws = found.batch(torch.arange(6), torch_stream(2, "batch"), mirrored=())
    assert torch.equal(draws[0], 1 - x)
    assert torch.equal(seen[-1], x)
    assert (len(found.train), len(found.held_out)) == (32, 8)
