"""Where a search for images begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from fedveil.attacks.matching.spectrum import NaturalSpectrum

Start = Literal["grey", "natural", "noise", "patterned"]
"""Mid-grey with a little noise, mid-grey with a trace of what natural images show (`NaturalSpectrum`), Gaussian noise as
wide as photographs' grey values, or a small random tile repeated."""

_LITTLE, _WIDE = 0.02, 0.25
"""Standard deviations around mid-grey."""
_TRACE = 1e-3
"""Standard deviation of the variables that `NaturalSpectrum` makes a start of, where natural images have 1."""
TILE = 4
"""Side of the tile in pixels."""


def start_of(kind: Start, shape: tuple[int, int, int, int], stream: torch.Generator) -> Tensor:
    """Return a random start (B, C, H, W) of a shape; values may lie outside of [0, 1]."""
    return _STARTS[kind](shape, stream)


def _grey(shape: tuple[int, int, int, int], stream: torch.Generator) -> Tensor:
    return 0.5 + _LITTLE * torch.randn(shape, generator=stream)


def _natural(shape: tuple[int, int, int, int], stream: torch.Generator) -> Tensor:
    variables = _TRACE * torch.randn(shape, generator=stream)
    return NaturalSpectrum.like(variables).images(variables)


def _noise(shape: tuple[int, int, int, int], stream: torch.Generator) -> Tensor:
    return 0.5 + _WIDE * torch.randn(shape, generator=stream)


def _patterned(shape: tuple[int, int, int, int], stream: torch.Generator) -> Tensor:
    count, channels, height, width = shape
    tile = _noise((count, channels, TILE, TILE), stream)
    return tile.repeat(1, 1, -(-height // TILE), -(-width // TILE))[..., :height, :width]


_STARTS: Mapping[Start, Callable[[tuple[int, int, int, int], torch.Generator], Tensor]] = {
    "grey": _grey,
    "natural": _natural,
    "noise": _noise,
    "patterned": _patterned,
}
