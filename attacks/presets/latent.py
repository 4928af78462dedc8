"""A search among the images that a decoder can make: what the attacker's own images taught it is the prior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vjp
from torch.nn import functional as F

from fedveil.attacks.optimizers import Objective
from fedveil.defense.fitting import fit
from fedveil.defense.modules import Autoencoder
from fedveil.fl.data.images import Images


@dataclass(frozen=True, eq=False)
class Latent:
    """An objective of images, as one of the latents (V, B, ...) that a decoder makes them of.

    Attributes:
        images: the objective of images (V, B, C, H, W).
        autoencoder: its decoder makes them, on the device of the latents; values outside of [0, 1] are clipped.
        middle: (...) the latent that zero stands for.
        width: of one unit.
    """

    images: Objective
    autoencoder: Autoencoder
    middle: Tensor
    width: Tensor

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        made, back, *_ = vjp(self.decode, x)
        value, slope = self.images(made)
        return value, back(slope)[0]

    def decode(self, z: Tensor) -> Tensor:
        """(V, B, ...) latents to (V, B, C, H, W) images in [0, 1]."""
        made = self.autoencoder.decode(self.middle + self.width * z.flatten(0, 1))
        return made.clamp(0, 1).view(*z.shape[:2], *made.shape[1:])

    def take(self, at: Tensor) -> Latent:
        """See `Objective`."""
        return Latent(self.images.take(at), self.autoencoder, self.middle, self.width)


def train_decoder(auxiliary: Images, *, steps: int, device: torch.device, stream: torch.Generator) -> Autoencoder:
    """Train an autoencoder on the attacker's images, by mean squared error.

    Args:
        auxiliary: images that belong to no client.
        steps: of Adam.
        device: where to train.
        stream: the only source of randomness.

    Returns:
        The autoencoder on the CPU, frozen.
    """
    return fit(
        lambda: Autoencoder(auxiliary.shape),
        auxiliary,
        lambda autoencoder, x, _: F.mse_loss(autoencoder(x), x),
        steps=steps,
        device=device,
        stream=stream,
    )
