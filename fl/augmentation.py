"""Random views of training images that keep their classes: mirrored, transposed, shifted. Drawn per image, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedveil.fl.errors import FedveilError
from fedveil.fl.registry import Registry

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""(n, C, H, W) images and the source of randomness to as many images of that shape."""

AUGMENTATIONS: Registry[Augmentation] = Registry("augmentation")

SHIFT = 2 / 28
"""Of a side, the most that an image is shifted: 2 px at 28 px."""


def augment(x: Tensor, kinds: Sequence[str], stream: torch.Generator) -> Tensor:
    """Return a random view of each image. Without ``kinds`` that is ``x`` itself, and nothing is drawn.

    What is drawn for an image depends on its place in the batch, never on other images.

    >>> x = torch.arange(9.0).view(1, 1, 3, 3)
    >>> augment(x, ["flip"], torch.Generator().manual_seed(0))[0, 0, 0]
    tensor([2., 1., 0.])

    Args:
        x: (n, C, H, W), on any device.
        kinds: names of `AUGMENTATIONS`, applied in this order: ``flip`` left and right, ``transpose`` to one of the eight
            symmetries of a square (flips among them), ``shift`` by up to `SHIFT` of a side, the edge repeated.
        stream: the only source of randomness, on the CPU.

    Raises:
        FedveilError: a name is unknown or comes twice, or images that are not square are to be transposed.
    """
    check_augmentations(kinds)
    for kind in kinds:
        x = AUGMENTATIONS[kind](x, stream)
    return x


def check_augmentations(kinds: Sequence[str]) -> None:
    """Check names.

    Raises:
        FedveilError: one is unknown, or comes twice.
    """
    for kind in kinds:
        AUGMENTATIONS[kind]
    if len(set(kinds)) < len(kinds):
        raise FedveilError(f"augmentation: given {', '.join(kinds)}; each name once")


@AUGMENTATIONS.register("flip")
def flip(x: Tensor, stream: torch.Generator) -> Tensor:
    """Mirror every second image, on average, left and right."""
    return torch.where(_half(x, stream), x.flip(3), x)


@AUGMENTATIONS.register("transpose")
def transpose(x: Tensor, stream: torch.Generator) -> Tensor:
    """Show each image in one of the eight symmetries of a square, all equally often.

    Raises:
        FedveilError: the images are not square.
    """
    height, width = x.shape[2:]
    if height != width:
        raise FedveilError(f"augmentation: transpose needs square images, given {height}x{width} px")
    x = flip(x, stream)
    x = torch.where(_half(x, stream), x.flip(2), x)
    return torch.where(_half(x, stream), x.transpose(2, 3), x)


@AUGMENTATIONS.register("shift")
def shift(x: Tensor, stream: torch.Generator) -> Tensor:
    """Shift each image down and right by whole pixels of either sign, all equally often up to `SHIFT` of a side."""
    down, right = (
        torch.randint(-most, most + 1, (len(x),), generator=stream) for most in (round(SHIFT * s) for s in x.shape[2:])
    )
    return shifted(x, down, right)


def shifted(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Return each image shifted by its own number of pixels; what comes in is the edge, repeated.

    Args:
        x: (n, C, H, W).
        down: (n,) int64, below 0 for up.
        right: (n,) int64, below 0 for left.
    """
    height, width = x.shape[2:]
    rows = (torch.arange(height) - down[:, None]).clamp(0, height - 1).to(x.device)
    columns = (torch.arange(width) - right[:, None]).clamp(0, width - 1).to(x.device)
    image = torch.arange(len(x), device=x.device)[:, None, None, None]
    channel = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
    return x[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _half(x: Tensor, stream: torch.Generator) -> Tensor:
    """(n, 1, 1, 1): about every second image."""
    return (torch.rand(len(x), generator=stream) < 0.5).view(-1, 1, 1, 1).to(x.device)
