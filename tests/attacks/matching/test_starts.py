from __future__ import annotations

import torch

from fedveil.attacks.matching.starts import TILE, start_of
from fedveil.fl.seeding import torch_stream


def test_grey_and_noise_have_their_widths() -> None:
    for kind, width in (("grey", 0.02), ("noise", 0.25)):
        start = start_of(kind, (4, 3, 32, 32), torch_stream(0, "start"))  # type: ignore[arg-type]
        assert start.shape == (4, 3, 32, 32)
        assert abs(float(start.mean()) - 0.5) < 0.02
        assert abs(float(start.std()) - width) < 0.05 * width


def test_a_pattern_repeats_its_tile_and_ends_at_the_edge() -> None:
    start = start_of("patterned", (2, 1, 10, 13), torch_stream(0, "start"))
    tile = start[..., :TILE, :TILE]
    assert start.shape == (2, 1, 10, 13)
    for row in range(10):
        for column in range(13):
            assert torch.equal(start[..., row, column], tile[..., row % TILE, column % TILE])
    assert not torch.equal(start[0], start[1])
