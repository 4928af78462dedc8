"""Where the image of a group is learnt: as pixels, or as the latent of an autoencoder that knows no private image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedveil.defense.devices import on_device
from fedveil.defense.latent.pool import CHUNK, filled
from fedveil.defense.modules import Autoencoder, rms
from fedveil.fl.data.images import Images


class Space(Protocol):
    """Places that stand for images, one each, and where a learnt difference is added."""

    def of(self, images: Images) -> Tensor:
        """Return the places (n, ...) of images, on the CPU; that of one depends in no bit on the others."""

    def unit(self, places: Tensor) -> Tensor:
        """Return in which unit differences from places (n, ...) are learnt, so that one learning rate suits all."""

    def shown(self, places: Tensor) -> Tensor:
        """Return the images (n, C, H, W) in [0, 1] of places (n, ...) on any device."""

    def kept(self, places: Tensor) -> Tensor:
        """Return the nearest places (n, ...) that are allowed."""


@dataclass(frozen=True)
class Pixels:
    """The image itself, x' = x_G + delta_G; differences are learnt in grey values from 0 to 1.

    >>> import torch
    >>> from fedveil.defense.latent.space import Pixels
    >>> Pixels().kept(torch.tensor([-0.5, 0.25, 1.5]))
    tensor([0.0000, 0.2500, 1.0000])
    """

    def of(self, images: Images) -> Tensor:
        """See `Space.of`."""
        return images.floats()

    def unit(self, places: Tensor) -> Tensor:
        """See `Space.unit`."""
        return torch.ones((len(places),) + (1,) * (places.ndim - 1), device=places.device)

    def shown(self, places: Tensor) -> Tensor:
        """See `Space.shown`."""
        return places

    def kept(self, places: Tensor) -> Tensor:
        """See `Space.kept`."""
        return places.clamp(0, 1)


@dataclass(frozen=True, eq=False)
class LatentOf:
    """The latent of an autoencoder, x' = D(z_G + delta_G): the form of arXiv 2503.16542, one delta for a group.

    Differences are learnt in units of the latent's root mean square, and all places are allowed.

    Attributes:
        autoencoder: trained on public images alone, frozen.
        device: where to encode.
    """

    autoencoder: Autoencoder
    device: torch.device

    @torch.no_grad()
    def of(self, images: Images) -> Tensor:
        """See `Space.of`."""
        encoder = on_device(self.autoencoder, self.device)
        if not len(images):
            return encoder.encode(torch.zeros(1, *images.shape, device=self.device)).cpu()[:0]
        # Always as many: how a sum is rounded may depend on the batch.
        parts = [
            encoder.encode(images.batch(filled(at, CHUNK))[0].to(self.device))[: len(at)].cpu()
            for at in torch.arange(len(images)).split(CHUNK)
        ]
        return torch.cat(parts)

    def unit(self, places: Tensor) -> Tensor:
        """See `Space.unit`."""
        return rms(places)

    def shown(self, places: Tensor) -> Tensor:
        """See `Space.shown`."""
        return on_device(self.autoencoder, places.device).decode(places).clamp(0, 1)

    def kept(self, places: Tensor) -> Tensor:
        """See `Space.kept`."""
        return places
