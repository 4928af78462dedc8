from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedveil.defense import BlockAverage, DefenseContext, TrainedOn
from fedveil.fl.data.images import Images


def averaged(x: Tensor, size: int) -> Tensor:
    return BlockAverage(size=size).data(x, None, torch.Generator())


@settings(max_examples=30)
@given(st.integers(1, 9), st.integers(1, 7), st.integers(1, 10), st.integers(0, 1000))
def test_each_block_shows_its_mean_also_where_the_image_ends(height: int, width: int, size: int, seed: int) -> None:
    x = torch.rand((2, 3, height, width), generator=torch.Generator().manual_seed(seed))
    expected = x.clone()
    for top in range(0, height, size):
        for left in range(0, width, size):
            block = (..., slice(top, top + size), slice(left, left + size))
            expected[block] = x[block].mean((2, 3), keepdim=True)
    torch.testing.assert_close(averaged(x, size), expected)


def test_blocks_of_one_pixel_change_nothing_and_twice_is_once(private: Images) -> None:
    x = private.floats()
    assert torch.equal(averaged(x, 1), x)
    torch.testing.assert_close(averaged(averaged(x, 5), 5), averaged(x, 5))
    assert float(averaged(x, 12).std((2, 3)).max()) == 0


def test_there_is_nothing_to_steal(context: DefenseContext, private: Images) -> None:
    settings_ = BlockAverage(size=4)
    assert settings_.trained_on is TrainedOn.NOTHING
    surrogate = settings_.prepare(private, context, settings_.pretrain(context), client=0).surrogate()
    assert surrogate.data is not None
    assert surrogate.complete
    assert surrogate.update is None
    assert surrogate.data(private.floats(), None, torch.Generator()).shape == private.pixels.shape


@pytest.mark.parametrize("size", [1, 7])
def test_it_leaves_the_stream_alone(size: int) -> None:
    stream = torch.Generator().manual_seed(4)
    BlockAverage(size=size).data(torch.rand(1, 1, 8, 8), None, stream)
    assert torch.equal(stream.get_state(), torch.Generator().manual_seed(4).get_state())
