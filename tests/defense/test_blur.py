from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedveil.defense import Blur, TrainedOn
from fedveil.defense.base import Stateless


def blurred(x: Tensor, strength: float) -> Tensor:
    return Blur(strength=strength).data(x, None, torch.Generator())


def test_a_bright_pixel_by_hand() -> None:
    """A deviation of 0.5 weighs distances 0, 1 and 2 like 1, exp(-2) and exp(-8)."""
    total = 1 + 2 * math.exp(-2) + 2 * math.exp(-8)
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 4] = 1
    found = blurred(x, 0.5)[0, 0]
    assert float(found[4, 4]) == pytest.approx(1 / total**2, rel=1e-5)
    assert float(found[4, 5]) == pytest.approx(math.exp(-2) / total**2, rel=1e-5)
    assert float(found[3, 3]) == pytest.approx(math.exp(-4) / total**2, rel=1e-5)
    assert float(found[4, 7]) == 0
    assert float(found.sum()) == pytest.approx(1, rel=1e-5)


@settings(max_examples=20)
@given(st.integers(1, 5), st.integers(1, 6), st.floats(0.2, 3), st.integers(0, 99))
def test_it_is_a_weighted_mean_and_the_image_goes_on_as_its_edge_is(
    height: int, width: int, strength: float, seed: int
) -> None:
    x = torch.rand((2, 3, height, width), generator=torch.Generator().manual_seed(seed))
    reach = math.ceil(4 * strength)
    weights = [math.exp(-(at**2) / (2 * strength**2)) for at in range(-reach, reach + 1)]
    expected = torch.zeros_like(x)
    for row in range(height):
        for column in range(width):
            for down, vertical in enumerate(weights):
                for right, horizontal in enumerate(weights):
                    at = min(height - 1, max(0, row + down - reach)), min(width - 1, max(0, column + right - reach))
                    expected[..., row, column] += vertical * horizontal * x[..., at[0], at[1]] / sum(weights) ** 2
    torch.testing.assert_close(blurred(x, strength), expected, rtol=1e-4, atol=1e-5)


@given(st.floats(0, 100), st.integers(0, 99))
@settings(max_examples=15)
def test_images_stay_images_and_even_ones_as_they_are(strength: float, seed: int) -> None:
    x = torch.rand((1, 1, 7, 7), generator=torch.Generator().manual_seed(seed))
    found = blurred(x, strength)
    assert found.shape == x.shape
    assert float(x.min()) - 1e-5 <= float(found.min()) <= float(found.max()) <= float(x.max()) + 1e-5
    even = torch.full_like(x, 0.3)
    torch.testing.assert_close(blurred(even, strength), even)
    assert torch.equal(blurred(x, 0), x)


def test_there_is_nothing_to_steal_and_nothing_drawn() -> None:
    assert Blur().trained_on is TrainedOn.NOTHING
    surrogate = Stateless(Blur()).surrogate()
    assert surrogate.complete
    assert surrogate.data is not None
    stream = torch.Generator().manual_seed(4)
    surrogate.data(torch.rand(1, 1, 8, 8), None, stream)
    assert torch.equal(stream.get_state(), torch.Generator().manual_seed(4).get_state())
