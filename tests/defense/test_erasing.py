from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedveil.attacks import Adaptive, InverseTraining
from fedveil.attacks.adaptive.preparation import preparation_key, prepare_attacker
from fedveil.defense import DefenseContext, FixedErasing, PixelDropout, RandomErasing, TrainedOn
from fedveil.defense.base import Stateless
from fedveil.defense.erasing import AUTHORS, Erasing
from fedveil.fl.data.images import Images

ERASING: list[type[Erasing]] = [RandomErasing, FixedErasing, PixelDropout]
kinds = st.sampled_from(ERASING)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mask(settings_: Erasing, shape: tuple[int, int, int, int], seed: int = 0) -> Tensor:
    return settings_.erased(torch.Size(shape), stream(seed))


def test_a_quarter_of_28_pixels_is_a_square_of_14_by_hand() -> None:
    given = {"smallest": 0.25, "largest": 0.25}
    for kind in ERASING:
        assert mask(kind(**given), (5, 3, 28, 28)).sum((1, 2, 3)).tolist() == [196] * 5  # type: ignore[arg-type]
    middle = torch.zeros(28, 28, dtype=torch.bool)
    middle[7:21, 7:21] = True
    assert torch.equal(mask(FixedErasing(**given), (1, 1, 28, 28))[0, 0], middle)  # type: ignore[arg-type]


@settings(max_examples=40)
@given(kinds, st.integers(1, 12), st.integers(1, 12), st.floats(0.01, 1), st.floats(0, 1), st.integers(0, 99))
def test_a_whole_square_of_an_area_in_the_range_goes(
    kind: type[Erasing], height: int, width: int, smallest: float, more: float, seed: int
) -> None:
    largest = smallest + more * (1 - smallest)
    gone = mask(kind(smallest=smallest, largest=largest), (6, 2, height, width), seed)
    assert gone.shape == (6, 1, height, width)
    for one in gone[:, 0]:
        side = round(float(one.sum()) ** 0.5)
        assert side**2 == int(one.sum())
        least, most = (min(height, width, max(1, (share * height * width) ** 0.5)) for share in (smallest, largest))
        assert least - 0.51 <= side <= most + 0.51
        if kind is not PixelDropout:
            rows, columns = one.any(1).nonzero().flatten(), one.any(0).nonzero().flatten()
            assert len(rows) == len(columns) == side
            assert int(rows[-1] - rows[0]) == int(columns[-1] - columns[0]) == side - 1


def test_areas_and_places_are_uniform() -> None:
    gone = mask(RandomErasing(smallest=0.1, largest=0.4), (4000, 1, 28, 28))[:, 0].float()
    # Uniform between 0.1 and 0.4: mean 0.25 with a standard deviation of 0.087, rounding aside.
    assert float(gone.mean((1, 2)).mean()) == pytest.approx(0.25, abs=0.006)
    assert float(gone.mean((1, 2)).std()) == pytest.approx(0.3 / 12**0.5, abs=0.006)
    squares = mask(RandomErasing(smallest=0.25, largest=0.25), (6000, 1, 28, 28))[:, 0]
    tops, lefts = squares.any(2).float().argmax(1), squares.any(1).float().argmax(1)
    for edges in (tops, lefts):
        counts = edges.bincount()
        # 15 places, 400 each, with a standard deviation of 19.
        assert len(counts) == 15
        assert counts.min() > 320
        assert counts.max() < 480
    dropped = mask(PixelDropout(smallest=0.25, largest=0.25), (3000, 1, 8, 8)).float().mean((0, 1))
    assert float((dropped - 0.25).abs().max()) < 0.035


def fill_of(channels: int, shown: Tensor) -> list[float]:
    return [round(value, 5) for value in shown[:, :, 0, 0][0].tolist()][:channels]


def test_erased_pixels_show_the_authors_grey_or_the_public_mean(context: DefenseContext, private: Images) -> None:
    whole: dict[str, Any] = {"smallest": 1.0, "largest": 1.0}
    colour, grey, y = torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8), torch.tensor([0])
    # In the authors' units (0.485, 0.456, 0.406), of a space where 1 is white and -1 black: (1 + v) / 2.
    assert pytest.approx([(1 + value) / 2 for value in (0.485, 0.456, 0.406)]) == AUTHORS
    authors = Stateless(RandomErasing(**whole))
    assert authors.data(colour, y, stream())[0, :, 3, 3].tolist() == pytest.approx([0.7425, 0.728, 0.703])
    assert authors.data(grey, y, stream())[0, :, 3, 3].tolist() == pytest.approx([0.7245], abs=1e-6)
    prepared = RandomErasing(**whole).prepare(private, context, RandomErasing(**whole).pretrain(context), client=0)
    assert prepared.data(grey, y, stream())[0, :, 3, 3].tolist() == pytest.approx([0.7245], abs=1e-6)
    mean = RandomErasing(fill="mean", **whole)
    assert (mean.trained_on, RandomErasing().trained_on) == (TrainedOn.PUBLIC, TrainedOn.NOTHING)
    shown = mean.prepare(private, context, mean.pretrain(context), client=0).data(grey, y, stream())
    assert shown.flatten().tolist() == pytest.approx([float(context.public.floats().mean())] * 64, abs=1e-6)


@pytest.mark.parametrize("kind", ERASING)
def test_what_is_left_stays_and_a_finished_model_sees_whole_images(
    kind: type[Erasing], context: DefenseContext, private: Images
) -> None:
    settings_ = kind()
    prepared = settings_.prepare(private, context, settings_.pretrain(context), client=0)
    x, y = private.floats(), private.labels
    assert prepared.data(x, None, stream()) is x
    shown = prepared.data(x, y, stream(3))
    gone = mask(settings_, tuple(x.shape), 3)  # type: ignore[arg-type]
    assert torch.equal(torch.where(gone, x, shown), x)
    assert bool((shown.masked_select(gone) - 0.7245).abs().max() < 1e-4)
    assert not torch.equal(prepared.data(x, y, stream(4)), shown)
    # Whoever knows the law draws from it, labels or not, prepared or from settings alone.
    for surrogate in (prepared.surrogate(), Stateless(settings_).surrogate()):
        assert surrogate.data is not None
        assert surrogate.complete
        assert torch.equal(surrogate.data(x, None, stream(3)), shown)


@pytest.mark.parametrize("kind", ERASING)
def test_a_victim_that_was_seen_several_times_is_undone_from_as_many_draws(
    kind: type[Erasing], context: DefenseContext, private: Images, public: Images
) -> None:
    settings_ = kind(smallest=0.25, largest=0.25)
    attack = Adaptive(inverse=InverseTraining(steps=20, batch_size=16, width=8))
    prepared = settings_.shadow(public, replace(context, seed=4), settings_.pretrain(context))
    key = preparation_key(attack, settings_.trained_on, 0, observations=4)
    assert key is not None
    ready = prepare_attacker(prepared, public, key, classes=2, device=torch.device("cpu"), stream=stream(1))
    # A square in the middle of one size is always the same: more of it tells nothing.
    assert ready.draws == (1 if kind is FixedErasing else 4)
    assert ready.inverse is not None
    x, y = private.floats()[:8], private.labels[:8]
    draws = torch.stack([prepared.data(x, y, stream(at)) for at in range(ready.draws)])
    found = ready.inverse(draws, y)
    for at in range(ready.draws):
        other = draws.clone()
        other[at] = 0.5
        assert not torch.allclose(ready.inverse(other, y), found), "each of them counts"


@pytest.mark.parametrize("times", [1, 2, 3])
def test_what_was_dropped_each_time_is_a_power_of_the_share(times: int) -> None:
    gone = torch.stack(
        [mask(PixelDropout(smallest=0.25, largest=0.25), (2000, 1, 8, 8), seed) for seed in range(times)]
    )
    assert float(gone.all(0).float().mean()) == pytest.approx(0.25**times, abs=0.003)
