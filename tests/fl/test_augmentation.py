from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedveil.fl.augmentation import AUGMENTATIONS, augment, shifted
from fedveil.fl.errors import FedveilError

torch.set_num_threads(1)

ALL = sorted(AUGMENTATIONS)
kinds = st.lists(st.sampled_from(ALL), unique=True)
seeds = st.integers(0, 2**32)


def pictures(count: int, side: int, seed: int, channels: int = 2) -> Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def view(x: Tensor, names: list[str], seed: int) -> Tensor:
    return augment(x, names, torch.Generator().manual_seed(seed))


def symmetries(image: Tensor) -> list[Tensor]:
    turned = [image.rot90(turns, (1, 2)) for turns in range(4)]
    return [*turned, *(one.flip(2) for one in turned)]


@given(count=st.integers(1, 6), side=st.integers(1, 9), seed=seeds)
def test_flips_and_transpositions_keep_each_images_pixels(count: int, side: int, seed: int) -> None:
    x = pictures(count, side, seed)
    seen = view(x, ["flip", "transpose"], seed)
    assert torch.equal(seen.flatten(2).sort().values, x.flatten(2).sort().values)


@given(count=st.integers(2, 6), names=kinds, seed=seeds, at=st.integers(0, 5))
def test_an_image_knows_nothing_of_the_others_in_its_batch(count: int, names: list[str], seed: int, at: int) -> None:
    x = pictures(count, 14, seed)
    others = x.clone()
    others[at % count] = 0.5
    kept = torch.arange(count) != at % count
    assert torch.equal(view(x, names, seed)[kept], view(others, names, seed)[kept])


@given(count=st.integers(1, 5), names=kinds, seed=seeds)
def test_the_stream_decides_and_the_images_stay_as_they_were(count: int, names: list[str], seed: int) -> None:
    x = pictures(count, 14, seed)
    before, state = x.clone(), torch.get_rng_state()
    first = view(x, names, seed)
    assert torch.equal(first, view(x, names, seed))
    assert first.shape == x.shape
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)


def padded(image: Tensor, down: int, right: int) -> Tensor:
    """The slow way: the edge repeated all around, then a window."""
    margin = 9
    wide = torch.nn.functional.pad(image[None], (margin,) * 4, mode="replicate")[0]
    height, width = image.shape[1:]
    return wide[:, margin - down :, margin - right :][:, :height, :width]


@given(moves=st.lists(st.tuples(st.integers(-8, 8), st.integers(-8, 8)), min_size=1, max_size=4), seed=seeds)
def test_a_shift_is_a_window_on_the_image_with_its_edge_repeated(moves: list[tuple[int, int]], seed: int) -> None:
    x = torch.rand(len(moves), 3, 5, 7, generator=torch.Generator().manual_seed(seed))
    down, right = torch.tensor(moves).unbind(1)
    found = shifted(x, down, right)
    for image, own, move in zip(x, found, moves, strict=True):
        assert torch.equal(own, padded(image, *move))
    assert torch.equal(shifted(x, 0 * down, 0 * right), x)


@pytest.mark.parametrize(("side", "most"), [(28, 2), (14, 1), (64, 5), (6, 0)])
def test_shifts_go_as_far_as_the_size_says_in_both_directions(side: int, most: int) -> None:
    ramp = torch.arange(float(side)).view(1, 1, 1, side).expand(400, 1, side, side)
    middle = view(ramp, ["shift"], 0)[:, 0, 0, side // 2] - side // 2
    assert set(middle.tolist()) == {float(move) for move in range(-most, most + 1)}
    down = view(ramp.transpose(2, 3), ["shift"], 1)[:, 0, side // 2, 0] - side // 2
    assert set(down.tolist()) == {float(move) for move in range(-most, most + 1)}


def test_transposing_shows_all_eight_symmetries_about_equally_often() -> None:
    image = pictures(1, 4, 0)
    seen = view(image.expand(1600, -1, -1, -1), ["transpose"], 3)
    counts = [int((seen == one).flatten(1).all(1).sum()) for one in symmetries(image[0])]
    assert sum(counts) == 1600
    # 200 each, with a deviation of 13.
    assert min(counts) > 140
    assert max(counts) < 260


def test_a_flip_mirrors_about_every_second_image() -> None:
    image = pictures(1, 4, 0)
    seen = view(image.expand(400, -1, -1, -1), ["flip"], 3)
    mirrored = (seen == image.flip(3)).flatten(1).all(1)
    assert 150 < int(mirrored.sum()) < 250
    assert torch.equal(seen[~mirrored], image.expand(int((~mirrored).sum()), -1, -1, -1))


def test_without_names_nothing_is_drawn() -> None:
    x, stream = pictures(2, 4, 0), torch.Generator().manual_seed(5)
    before = stream.get_state()
    assert augment(x, (), stream) is x
    assert torch.equal(stream.get_state(), before)


def test_what_cannot_be_is_refused_in_words() -> None:
    x, stream = torch.zeros(2, 1, 4, 6), torch.Generator()
    with pytest.raises(FedveilError, match="unknown augmentation 'rotate'; allowed: flip, shift, transpose"):
        augment(x, ["flip", "rotate"], stream)
    with pytest.raises(FedveilError, match="augmentation: given flip, flip; each name once"):
        augment(x, ["flip", "flip"], stream)
    with pytest.raises(FedveilError, match="transpose needs square images, given 4x6 px"):
        augment(x, ["transpose"], stream)
