"""The normalisation layers that classifiers choose from."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class BatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that stays right under nested differentiation where it has no running statistics.

    When a jvp in training mode is differentiated once more, PyTorch's fused kernel silently takes the batch's
    mean and variance for constants (github.com/pytorch/pytorch/issues/196699). Just that, grad over jvp, is a
    step of gradient inversion. ``torch.func.replace_all_batch_norm_modules_`` takes the running statistics
    away; from then on the same normalisation is computed from elementary operations. Ordinary training keeps
    the fused kernel.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised (n, C, H, W) features."""
        if self.running_mean is not None:
            return super().forward(input)
        centred = input - input.mean((0, 2, 3), keepdim=True)
        variance = centred.square().mean((0, 2, 3), keepdim=True)
        scale = self.weight[:, None, None] * torch.rsqrt(variance + self.eps)
        return centred * scale + self.bias[:, None, None]


def _group_norm(channels: int) -> nn.Module:
    # At most eight groups, and a number that divides the channels. Wu & He 2018 (arXiv 1803.08494, table 3)
    # see little change of accuracy between 2 and 64 groups.
    return nn.GroupNorm(math.gcd(8, channels), channels)


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),
    "group": _group_norm,
    "batch": BatchNorm2d,
}


def norm_layer(norm: str, channels: int) -> nn.Module:
    """Return the normalisation ``norm`` (``none``, ``group``, ``batch``) of (n, channels, H, W) features."""
    return _NORMS[norm](channels)
