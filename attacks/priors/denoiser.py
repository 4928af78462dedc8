"""A denoiser that was trained on the attacker's own images: an image is what it leaves alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedveil.defense.checks import at_least
from fedveil.defense.fitting import fit
from fedveil.fl.data.images import Images


class ResidualDenoiser(nn.Module):
    """A small network that estimates the noise on an image, without normalisation (cf. DnCNN, Zhang et al. 2017).

    Args:
        channels: of the images.
        width: of the hidden layers.
    """

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=2, dilation=2),
            nn.SiLU(),
            nn.Conv2d(width, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the denoised (n, C, H, W) images, not clipped."""
        denoised: Tensor = x - self.body(x)
        return denoised


def train_denoiser(
    auxiliary: Images, *, steps: int, noise: float, device: torch.device, stream: torch.Generator
) -> ResidualDenoiser:
    """Train a denoiser on the attacker's images, for Gaussian noise of any deviation up to ``noise``.

    Args:
        auxiliary: images that belong to no client.
        steps: of Adam.
        noise: greatest standard deviation, in pixel units.
        device: where to train.
        stream: the only source of randomness.

    Returns:
        The denoiser on the CPU, frozen.
    """

    def loss(denoiser: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        level = noise * torch.rand((len(x), 1, 1, 1), generator=stream)
        noisy = x + (level * torch.randn(x.shape, generator=stream)).to(x.device)
        return F.mse_loss(denoiser(noisy), x)

    return fit(lambda: ResidualDenoiser(auxiliary.shape[0]), auxiliary, loss, steps=steps, device=device, stream=stream)


@dataclass(frozen=True, eq=False)
class Denoiser:
    """The mean squared residual of a denoiser, |x - D(x)|^2.

    Regularisation by denoising (Romano, Elad and Milanfar 2017) follows x - D(x), which is the gradient of a function for
    few denoisers only; this penalty is a function, so that line searches can trust it.

    Attributes:
        weight: of the mean over all pixels and images of a victim, at least 0.
        network: (n, C, H, W) to (n, C, H, W), on the device of the images.
    """

    weight: float
    network: nn.Module

    def __post_init__(self) -> None:
        at_least("denoiser", weight=(self.weight, 0))

    def __call__(self, x: Tensor) -> Tensor:
        """See `Prior`."""
        images = x.flatten(0, 1)
        residual: Tensor = (images - self.network(images)).view_as(x)
        return self.weight * residual.square().flatten(1).mean(dim=1)

    def take(self, at: Tensor) -> Denoiser:
        """See `Prior`."""
        return self
