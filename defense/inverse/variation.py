"""Making more of few images: turned, moved and mirrored as the data set's own images could be, before they are defended."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fedveil.fl.data.images import Images

_TURN = 0.17
_SCALE = 0.12
_SHIFT = 0.15
_CONTRAST = 0.15
_BRIGHTNESS = 0.05
_UNTOUCHED = 0.2
_ALIKE = 1.05
_COMPARED = 500


def varied(images: Tensor, stream: torch.Generator, *, mirrored: Sequence[int] = ()) -> Tensor:
    """Return ``images``, each turned, scaled, shifted and lit by its own chance; every fifth stays upright as it is.

    Up to 10 degrees, 12 % of the size and 7.5 % of a side; contrast by 15 % and brightness by 0.05.

    Args:
        images: (n, C, H, W) in [0, 1], on the CPU.
        stream: decides.
        mirrored: the axes, 2 or 3, along which every second image is mirrored; see `mirrors`.

    Returns:
        New images, as many, in [0, 1].
    """
    kept = (torch.rand((len(images), 1, 1, 1), generator=stream) >= _UNTOUCHED).float()

    def uniform(reach: float) -> Tensor:  # one number per image
        return kept * reach * (2 * torch.rand((len(images), 1, 1, 1), generator=stream) - 1)

    for axis in mirrored:
        side = torch.rand((len(images), 1, 1, 1), generator=stream) < 0.5
        images = torch.where(side, images.flip(axis), images)
    angle, scale = uniform(_TURN), 1 + uniform(_SCALE)
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    turned = torch.cat([cosine, -sine, uniform(_SHIFT), sine, cosine, uniform(_SHIFT)], 1).view(-1, 2, 3)
    moved = functional.grid_sample(
        images,
        functional.affine_grid(turned, list(images.shape), align_corners=False),
        padding_mode="reflection",
        align_corners=False,
    )
    mean = moved.mean((1, 2, 3), keepdim=True)
    return (mean + (moved - mean) * (1 + uniform(_CONTRAST)) + uniform(_BRIGHTNESS)).clamp(0, 1)


def mirrors(images: Images) -> tuple[int, ...]:
    """Return the axes, of 2 and 3, along which the data set's images may be mirrored and still look like its images.

    A cell has no upright, a chest has the heart on one side. Which it is shows in how near half of the images come to the
    other half: mirrored, hardly less near than as they are. With fewer than four images nothing is mirrored.
    """
    x = images.floats()[: 2 * _COMPARED].flatten(1)
    others, half = x[0::2], x[1::2].view(-1, *images.shape)
    if len(half) < 2:
        return ()

    def distance(shown: Tensor) -> float:
        return float(torch.cdist(shown.flatten(1), others).min(dim=1).values.square().mean())

    upright = _ALIKE * distance(half)
    return tuple(axis for axis in (2, 3) if distance(half.flip(axis)) <= upright)
