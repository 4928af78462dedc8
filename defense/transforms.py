"""Plain transformations of images in [0, 1], by name: what a policy of `fedveil.defense.ats` is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

Transform = Callable[[Tensor], Tensor]
"""(n, C, H, W) in [0, 1] to the same, each image alike."""


def _moved(matrix: list[list[float]]) -> Transform:
    """Through an affine map of coordinates that run from -1 to 1; what comes from outside the image is black."""

    def move(x: Tensor) -> Tensor:
        theta = torch.tensor(matrix).to(x).expand(len(x), 2, 3)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)

    return move


def _turned(degrees: float) -> Transform:
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return _moved([[cosine, -sine, 0], [sine, cosine, 0]])


def _contrast(factor: float) -> Transform:
    def stretch(x: Tensor) -> Tensor:
        means = x.mean((1, 2, 3), keepdim=True)
        return (means + factor * (x - means)).clamp(0, 1)

    return stretch


def _posterised(levels: int) -> Transform:
    return lambda x: (x * (levels - 1)).round() / (levels - 1)


def _solarised(threshold: float) -> Transform:
    return lambda x: torch.where(x >= threshold, 1 - x, x)


def _brighter(amount: float) -> Transform:
    return lambda x: (x + amount).clamp(0, 1)


def _smoothed(x: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def _inverted(x: Tensor) -> Tensor:
    return 1 - x


def _mirrored(x: Tensor) -> Tensor:
    return x.flip(-1)


TRANSFORMS: Mapping[str, Transform] = {
    "invert": _inverted,
    "mirror": _mirrored,
    "smooth": _smoothed,
    **{f"contrast_{factor:g}": _contrast(factor) for factor in (0.4, 0.7, 1.6, 2.5)},
    **{f"brighter_{amount:g}": _brighter(amount) for amount in (-0.4, -0.2, 0.2, 0.4)},
    **{f"posterise_{levels}": _posterised(levels) for levels in (2, 4, 8)},
    **{f"solarise_{threshold:g}": _solarised(threshold) for threshold in (0.25, 0.5, 0.75)},
    **{f"turn_{degrees:g}": _turned(degrees) for degrees in (-45, -20, 20, 45)},
    **{f"right_{share:g}": _moved([[1, 0, -2 * share], [0, 1, 0]]) for share in (-0.3, -0.15, 0.15, 0.3)},
    **{f"down_{share:g}": _moved([[1, 0, 0], [0, 1, -2 * share]]) for share in (-0.3, -0.15, 0.15, 0.3)},
    **{f"shear_{amount:g}": _moved([[1, amount, 0], [0, 1, 0]]) for amount in (-0.3, 0.3)},
}
"""Sizes are part of the names: brightness in pixel units, angles in degrees, shifts in shares of the image."""


def applied(policy: tuple[str, ...], x: Tensor) -> Tensor:
    """Return images (n, C, H, W) in [0, 1] after the named transformations, one after another."""
    for name in policy:
        x = TRANSFORMS[name](x)
    return x.clamp(0, 1)
