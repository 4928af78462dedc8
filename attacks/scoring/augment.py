"""Random changes that keep the class of a small medical image, and make it look as a reconstruction may look."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fedveil.attacks.scoring.gallery import Gallery
from fedveil.fl.data.images import Images

_TURN = 0.26
_SCALE = 0.15
_SHIFT = 0.15
_CONTRAST = 0.3
_BRIGHTNESS = 0.1
_NOISE = 0.1
_KEPT = 0.9


def augment(images: Tensor, stream: torch.Generator, *, mirrored: Sequence[int] = ()) -> Tensor:
    """Return ``images``, each turned, scaled, shifted, brightened, blurred and covered with noise by its own chance.

    Up to 15 degrees, 15 % of the size and 7.5 % of a side; contrast by 30 % and brightness by 0.1; every second image
    is blurred over 3 x 3 pixels and every second gets Gaussian noise up to 0.1.

    Args:
        images: (n, C, H, W) in [0, 1], on the CPU.
        stream: decides.
        mirrored: the axes, 2 or 3, along which every second image is mirrored; see `class_keeping_mirrors`.

    Returns:
        New images, as many, in [0, 1].
    """

    def uniform(low: float, high: float) -> Tensor:  # one number per image
        return low + (high - low) * torch.rand((len(images), 1, 1, 1), generator=stream)

    for axis in mirrored:
        images = torch.where(uniform(0, 1) < 0.5, images.flip(axis), images)
    angle, scale = uniform(-_TURN, _TURN), uniform(1 - _SCALE, 1 + _SCALE)
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    rows = [cosine, -sine, uniform(-_SHIFT, _SHIFT), sine, cosine, uniform(-_SHIFT, _SHIFT)]
    turned = torch.cat(rows, 1).view(-1, 2, 3)
    moved = functional.grid_sample(
        images,
        functional.affine_grid(turned, list(images.shape), align_corners=False),
        padding_mode="border",
        align_corners=False,
    )
    mean = moved.mean((1, 2, 3), keepdim=True)
    lit = mean + (moved - mean) * uniform(1 - _CONTRAST, 1 + _CONTRAST) + uniform(-_BRIGHTNESS, _BRIGHTNESS)
    blurred = functional.avg_pool2d(functional.pad(lit, (1,) * 4, mode="replicate"), 3, stride=1)
    soft = torch.lerp(lit, blurred, uniform(-1, 1).clamp(min=0))
    noise = torch.randn(images.shape, generator=stream)
    return (soft + uniform(-_NOISE, _NOISE).clamp(min=0) * noise).clamp(0, 1)


def class_keeping_mirrors(images: Images, others: Images) -> tuple[int, ...]:
    """Return the axes, of 2 and 3, along which an image may be mirrored without showing another class.

    A cell keeps its class, a digit does not. Which it is shows in the nearest of the ``others``: mirrored, it must be of
    the right class nearly as often (nine times in ten) as it is for the images as they are.
    """
    gallery, upright = Gallery(others.pixels), images.floats()

    def share(shown: Tensor) -> float:
        return (others.labels[gallery.nearest(shown)] == images.labels).double().mean().item()

    needed = _KEPT * share(upright)
    return tuple(axis for axis in (2, 3) if share(upright.flip(axis)) >= needed)
