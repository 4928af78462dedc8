"""A control: the simplest loss of detail, without noise and with nothing learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fedveil.defense.base import DEFENSES, Defense
from fedveil.defense.checks import at_least


@DEFENSES.register("block_average")
@dataclass(frozen=True, kw_only=True)
class BlockAverage(Defense[None]):
    """Each block of pixels shows its mean.

    >>> import torch
    >>> from fedveil.defense import BlockAverage
    >>> x = torch.tensor([[[[0.0, 0.5, 1.0], [0.5, 1.0, 0.0]]]])
    >>> BlockAverage(size=2).data(x, None, torch.Generator())
    tensor([[[[0.5000, 0.5000, 0.5000],
              [0.5000, 0.5000, 0.5000]]]])

    Attributes:
        size: side of a block in pixels, at least 1. Blocks at the right and lower edge are cut where the image ends.
    """

    dial: ClassVar[str] = "size"

    size: int = 4

    def __post_init__(self) -> None:
        at_least("block_average", size=(self.size, 1))

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        """See `fedveil.fl.hooks.ClientHooks.data`."""
        height, width = x.shape[2:]
        size = (min(self.size, height), min(self.size, width))
        means = F.avg_pool2d(x, size, ceil_mode=True)
        return means.repeat_interleave(size[0], 2).repeat_interleave(size[1], 3)[..., :height, :width]
