"""A basis in which natural images are about white: a search in it finds broad shapes first, fine detail where it is told.

An update of a batch tells less than there are pixels. Searched for pixel by pixel, such images come out as noise that
explains the update; in this basis the least of all changes that explain it is the one that natural images would show.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedveil.attacks.optimizers import Objective

_DEVIATION = 0.25
"""Of natural images' pixels from mid-grey, in the range [0, 1]."""
_COLOURS = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))
"""Brightness, red against blue, green against both: about the principal axes of natural images' colours (Ruderman et al.
1998)."""
_SHARES = (1.645, 0.496, 0.22)
"""How much of them images show: root mean squares of CIFAR-10's auxiliary images, for channels of unit variance."""
_OUTSIDE = 1.0
"""Weight of the mean squared distance of pixels from [0, 1], where variables would have them outside."""


@dataclass(frozen=True, eq=False)
class NaturalSpectrum:
    """Images as 1/2 + A z, where natural images have z of about zero mean and unit variance, one entry like another.

    A scales the cosine transform of each channel by 1 / f, f being the spatial frequency in half waves per image, at least
    1 (amplitudes of natural images; Field 1987, J. Opt. Soc. Am. A 4(12)); three channels are mixed into colours.
    Decorrelated, frequency-scaled variables are Olah et al.'s (2017, "Feature Visualization").

    Attributes:
        down: (H, H) cosine transform of columns, orthonormal.
        across: (W, W) of rows.
        scale: (H, W) deviations of coefficients.
        colours: (C, C) rows are what one variable does to the channels.
    """

    down: Tensor
    across: Tensor
    scale: Tensor
    colours: Tensor

    @classmethod
    def like(cls, images: Tensor) -> NaturalSpectrum:
        """Return the basis of images (..., C, H, W), of their device and precision."""
        channels, height, width = images.shape[-3:]
        frequency = torch.hypot(*torch.meshgrid(_counted(height)[:, 0], _counted(width)[:, 0], indexing="ij"))
        scale = 1 / frequency.clamp_min(1.0)
        scale = scale * _DEVIATION / scale.square().mean().sqrt()
        colours = torch.eye(channels, dtype=torch.float64)
        if channels == len(_COLOURS):
            colours = torch.tensor(_COLOURS, dtype=torch.float64)
            colours = torch.tensor(_SHARES, dtype=torch.float64)[:, None] * colours / colours.norm(dim=1, keepdim=True)
        parts = (cosines(height), cosines(width), scale, colours)
        return cls(*(part.to(images.device, images.dtype) for part in parts))

    def images(self, variables: Tensor) -> Tensor:
        """Return images (..., C, H, W) of variables of that shape; pixels may lie outside of [0, 1]."""
        mixed = torch.einsum("kc,...khw->...chw", self.colours, variables)
        return 0.5 + self.down.T @ (self.scale * mixed) @ self.across

    def variables(self, images: Tensor) -> Tensor:
        """Return the variables of images, the inverse of `images`."""
        mixed = self.down @ (images - 0.5) @ self.across.T / self.scale
        return torch.einsum("ck,...chw->...khw", torch.linalg.inv(self.colours), mixed)

    def pulled(self, slope: Tensor) -> Tensor:
        """Return the gradient by the variables from one by the images, both (..., C, H, W): A transposed times it."""
        mixed = self.scale * (self.down @ slope @ self.across.T)
        return torch.einsum("kc,...chw->...khw", self.colours, mixed)


@dataclass(frozen=True, eq=False)
class InSpectrum:
    """An objective of images as one of variables, see `NaturalSpectrum`, with what the prior says of those.

    Attributes:
        objective: of images; it is asked for images in [0, 1] alone.
        spectrum: the basis.
        weight: of the variables' mean square, at least 0. What pulls pixels back into [0, 1] comes on top.
    """

    objective: Objective
    spectrum: NaturalSpectrum
    weight: float

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        images = self.spectrum.images(x)
        inside = images.clamp(0, 1)
        beyond, pixels = images - inside, x[0].numel()
        value, slope = self.objective(inside)
        slope = torch.where(beyond == 0, slope, 2 * _OUTSIDE / pixels * beyond)
        value = value + _OUTSIDE * beyond.square().flatten(1).mean(1) + self.weight * x.square().flatten(1).mean(1)
        return value, self.spectrum.pulled(slope) + 2 * self.weight / pixels * x

    def take(self, at: Tensor) -> InSpectrum:
        """See `Objective`."""
        return InSpectrum(self.objective.take(at), self.spectrum, self.weight)


def cosines(size: int) -> Tensor:
    """Return the orthonormal discrete cosine transform (type II), (N, N), in double precision."""
    waves = torch.cos(math.pi / (2 * size) * _counted(size) * (2 * _counted(size).T + 1)) * math.sqrt(2 / size)
    waves[0] /= math.sqrt(2)
    return waves


def _counted(size: int) -> Tensor:
    return torch.arange(size, dtype=torch.float64)[:, None]
