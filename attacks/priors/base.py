"""The interface of a prior."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Prior(Protocol):
    """A penalty for images that are unlikely, with its weight included, in one batch for all victims."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return (V,) penalties of (V, B, C, H, W) images, differentiable by autograd; each depends on its victim alone."""

    def take(self, at: Tensor) -> Prior:
        """Return the prior of some victims.

        Args:
            at: (n,) their numbers, int64.
        """
