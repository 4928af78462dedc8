"""The small networks of the latent perturbation: encoder, decoder, perturbation, and the adversary that undoes it.

All are fully convolutional apart from one global-context branch, sized for 28 to 224 px, and work at reduced resolution
with pixel (un)shuffling, so that a minimax step costs milliseconds on a CPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LATENT_CHANNELS = 32


def groups_of(channels: int) -> int:
    """How many groups a GroupNorm makes of so many channels: 8, or what they share with 8."""
    return math.gcd(8, channels)


def _conv(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1),
        nn.GroupNorm(groups_of(outputs), outputs),
        nn.SiLU(),
    )


def _up(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, 4 * outputs, 3, padding=1), nn.PixelShuffle(2))


def halvings(size: int) -> int:
    """How often the encoder halves an image of ``size`` px: twice up to 45 px, so that the latent stays about 8 wide."""
    return max(2, round(math.log2(size / 8)))


def pad_to(x: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column of (n, C, H, W) until both sides are multiples of ``multiple``."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")


class Autoencoder(nn.Module):
    """A deterministic convolutional autoencoder with a spatial latent.

    For an image (C, H, W) the latent is (32, H/2^k, W/2^k), k = `halvings`; sizes are padded to a multiple of 2^k
    inside and cut back on the way out.

    Args:
        shape: (C, H, W).
        width: channels of the hidden layers.
    """

    def __init__(self, shape: tuple[int, int, int], width: int = 32) -> None:
        super().__init__()
        channels, height, width_px = shape
        self.shape = shape
        times = halvings(max(height, width_px))
        self.multiple = 2**times
        down: list[nn.Module] = [nn.PixelUnshuffle(2), _conv(4 * channels, width)]
        for _ in range(times - 1):
            down.append(_conv(width, width, stride=2))
        self.encoder = nn.Sequential(*down, nn.Conv2d(width, LATENT_CHANNELS, 3, padding=1))
        up: list[nn.Module] = [_conv(LATENT_CHANNELS, width)]
        for _ in range(times - 1):
            up += [_up(width, width), nn.GroupNorm(groups_of(width), width), nn.SiLU()]
        self.decoder = nn.Sequential(*up, _conv(width, width), _up(width, channels))

    def encode(self, x: Tensor) -> Tensor:
        """(n, C, H, W) in [0, 1] to the latent (n, 32, h, w)."""
        z: Tensor = self.encoder(2 * pad_to(x, self.multiple) - 1)
        return z

    def decode(self, z: Tensor) -> Tensor:
        """The latent (n, 32, h, w) to (n, C, H, W), not clipped."""
        _, height, width = self.shape
        image: Tensor = self.decoder(z)
        return (image[..., :height, :width] + 1) / 2

    def forward(self, x: Tensor) -> Tensor:
        """Encode and decode."""
        return self.decode(self.encode(x))


def rms(z: Tensor) -> Tensor:
    """Root mean square per sample, kept broadcastable: (n, ...) to (n, 1, ..., 1)."""
    return z.square().mean(dim=tuple(range(1, z.ndim)), keepdim=True).add(1e-12).sqrt()


class Perturbation(nn.Module):
    """The learnable perturbation P of the latent: a learnt direction plus noise of a learnt scale, at a fixed budget.

    With d = tanh(m(z)) + softplus(s(z)) * n, n ~ N(0, I), the perturbed latent is z' = z + strength * rms(z) * d / rms(d):
    what is learnt is where the budget goes, never how large it is. The noise is what makes the map impossible to invert
    exactly; a deterministic P could simply be undone.

    Args:
        strength: rho, the size of the perturbation relative to the latent's own root mean square.
        width: channels of the hidden layers.
    """

    def __init__(self, strength: float, width: int = 48) -> None:
        super().__init__()
        self.strength = strength
        self.local = nn.Sequential(_conv(LATENT_CHANNELS, width), _conv(width, width))
        self.context = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU())
        self.mix = _conv(width, width)
        self.direction = nn.Conv2d(width, LATENT_CHANNELS, 3, padding=1)
        self.scale = nn.Conv2d(width, LATENT_CHANNELS, 3, padding=1)

    def forward(self, z: Tensor, noise: Tensor) -> Tensor:
        """Perturb latents.

        Args:
            z: (n, 32, h, w).
            noise: standard normal, shaped as ``z``.
        """
        h = self.local(z)
        pooled = torch.cat([h.mean(dim=(2, 3)), h.amax(dim=(2, 3))], dim=1)
        h = self.mix(h + self.context(pooled)[:, :, None, None])
        d = torch.tanh(self.direction(h)) + F.softplus(self.scale(h)) * noise
        return z + self.strength * rms(z) * d / rms(d)


class Inverse(nn.Module):
    """The adversary A: estimates the original from what the client trained on. A small U-Net that predicts the image.

    Args:
        shape: (C, H, W).
        width: channels at half resolution; the quarter-resolution level has twice as many.
    """

    def __init__(self, shape: tuple[int, int, int], width: int = 32) -> None:
        super().__init__()
        channels, height, width_px = shape
        self.size = (height, width_px)
        self.enter = nn.Sequential(nn.PixelUnshuffle(2), _conv(4 * channels, width), _conv(width, width))
        self.down = nn.Sequential(_conv(width, 2 * width, stride=2), _conv(2 * width, 2 * width))
        self.context = nn.Sequential(nn.Linear(4 * width, 2 * width), nn.SiLU())
        self.bottom = _conv(2 * width, 2 * width)
        self.up = _up(2 * width, width)
        self.leave = nn.Sequential(_conv(2 * width, width), _up(width, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) in [0, 1] to an estimate of the original, (n, C, H, W) in [0, 1]."""
        entered = self.enter(pad_to(2 * x - 1, 4))
        low = self.down(entered)
        pooled = torch.cat([low.mean(dim=(2, 3)), low.amax(dim=(2, 3))], dim=1)
        low = self.bottom(low + self.context(pooled)[:, :, None, None])
        image = self.leave(torch.cat([entered, self.up(low)], dim=1))[..., : self.size[0], : self.size[1]]
        return torch.sigmoid(2 * image)
