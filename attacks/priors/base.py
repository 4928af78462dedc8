"""The interface of a prior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.func import grad


class Prior(Protocol):
    """A penalty for images that are unlikely, with its weight included, in one batch for all victims."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return (V,) penalties of (V, B, C, H, W) images, differentiable by autograd; each depends on its victim alone."""

    def take(self, at: Tensor) -> Prior:
        """Return the prior of some victims.

        Args:
            at: (n,) their numbers, int64.
        """


def penalty_and_slope(priors: Sequence[Prior], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the priors' sum (V,) at images (V, B, C, H, W), and its gradient shaped as they are; at least one prior."""

    def total(x: Tensor) -> tuple[Tensor, Tensor]:
        penalties = torch.stack([prior(x) for prior in priors]).sum(0)
        return penalties.sum(), penalties

    slope, penalties = grad(total, has_aux=True)(x)
    return penalties, slope
