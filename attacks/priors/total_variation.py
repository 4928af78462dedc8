"""Total variation: neighbouring pixels of an image are alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedveil.defense.base import at_least

_LEAST = 1e-12
"""Keeps the root differentiable where an image is flat."""


@dataclass(frozen=True)
class TotalVariation:
    """Total variation (Rudin, Osher and Fatemi 1992), by default anisotropic: the absolute differences of each axis.

    >>> import torch
    >>> images = torch.tensor([[0.0, 1.0, 3.0], [2.0, 2.0, 2.0]]).expand(1, 1, 1, 2, 3)
    >>> TotalVariation(12)(images)
    tensor([25.0000])

    Attributes:
        weight: of mean |dx| + mean |dy| over all pixels and images of a victim, at least 0.
        isotropic: the mean of sqrt(dx^2 + dy^2) instead, over pixels with a neighbour on the right and one below.
        opponents: differences between colour channels are looked at like further channels, so that edges of all colours
            fall together ("double opponents", Astrom and Schnorr 2016); images of one channel have none.
    """

    weight: float
    isotropic: bool = False
    opponents: bool = False

    def __post_init__(self) -> None:
        at_least("total_variation", weight=(self.weight, 0))

    def __call__(self, x: Tensor) -> Tensor:
        """See `Prior`."""
        if self.opponents:
            first, second = torch.combinations(torch.arange(x.shape[2], device=x.device)).unbind(1)
            x = torch.cat([x, x[:, :, first] - x[:, :, second]], dim=2)
        across, down = x.diff(dim=-1), x.diff(dim=-2)
        if self.isotropic:
            slope = (across[..., :-1, :].square() + down[..., :-1].square() + _LEAST).sqrt()
            return self.weight * slope.flatten(1).mean(dim=1)
        return self.weight * (across.abs().flatten(1).mean(dim=1) + down.abs().flatten(1).mean(dim=1))

    def take(self, at: Tensor) -> TotalVariation:
        """See `Prior`."""
        return self
