"""Total variation: neighbouring pixels of an image are alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from fedveil.defense.checks import at_least

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
        if self.isotropic:
            across, down = x.diff(dim=-1), x.diff(dim=-2)
            slope = (across[..., :-1, :].square() + down[..., :-1].square() + _LEAST).sqrt()
            return self.weight * slope.flatten(1).mean(dim=1)
        total: Tensor = _Rises.apply(x, self.weight)[0]
        return total

    def take(self, at: Tensor) -> TotalVariation:
        """See `Prior`."""
        return self


class _Rises(Function):
    """weight (mean |dx| + mean |dy|) (V,) of x (V, ..., H, W), and its gradient.

    PyTorch's own derivative takes each step of it through memory of its own, which is slower.
    """

    @staticmethod
    def forward(x: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        across, down = x.diff(dim=-1), x.diff(dim=-2)
        wide, high = (-weight / max(1, rise[0].numel()) for rise in (across, down))
        total = across.abs().flatten(1).sum(1) * -wide + down.abs().flatten(1).sum(1) * -high
        bends = F.pad(across.sign(), (1, 1)).diff(dim=-1), F.pad(down.sign(), (0, 0, 1, 1)).diff(dim=-2)
        return total, (bends[0] * wide).add(bends[1], alpha=high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor, None]:
        (unit,) = ctx.saved_tensors
        return slope.view(-1, *[1] * (unit.ndim - 1)) * unit, None
