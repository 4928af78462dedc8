"""The inversion model of Yang et al. 2019 (arXiv 1902.08552): a decoder from confidence vectors to images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedveil.defense.checks import MOST_STEPS, above_zero, at_least, whole
from fedveil.defense.modules import halvings
from fedveil.defense.seeded import seeded
from fedveil.fl.data.images import Images
from fedveil.fl.stepping import Adam
from fedveil.fl.until_flat import Curve, held_out, train_until_flat

SHIFT = 50.0
"""c: log-confidences below -c count as -c. The authors' code has 50."""
CHUNK = 256


def truncated_logs(confidences: Tensor) -> Tensor:
    """Return max(log p + c, 0) / c for confidence vectors p (n, k): what the decoder is shown, in [0, 1].

    The truncation is Yang et al.'s (section 4.2), with c = 50 as in their code; a confidence of 0 reads as 0. They do not
    divide by c: here the first layer's weights have the usual scale.

    >>> truncated_logs(torch.tensor([[1.0, 0.0]]))
    tensor([[1., 0.]])
    """
    return (confidences.log() + SHIFT).clamp_min(0) / SHIFT


class ConfidenceDecoder(nn.Module):
    """Transposed convolutions from a vector to an image, with BatchNorm and tanh, and a sigmoid at the end.

    The authors' has five of them for 64 px. Here a vector becomes a map of about 8 px a side, which is doubled as often as
    `halvings` says; a 3x3 convolution paints the image.

    Args:
        classes: k.
        shape: (C, H, W).
        width: channels at full resolution.
    """

    def __init__(self, classes: int, shape: tuple[int, int, int], width: int = 16) -> None:
        super().__init__()
        channels, height, side = shape
        self.size = (height, side)
        times = halvings(max(height, side))
        first = (math.ceil(height / 2**times), math.ceil(side / 2**times))
        wide = width * 2 ** min(times, 3)
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(classes, wide, first, bias=False),
            nn.BatchNorm2d(wide),
            nn.Tanh(),
        ]
        for _ in range(times):
            narrow = max(width, wide // 2)
            layers += [nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=False), nn.BatchNorm2d(narrow), nn.Tanh()]
            wide = narrow
        self.body = nn.Sequential(*layers, nn.Conv2d(wide, channels, 3, padding=1))

    def forward(self, confidences: Tensor) -> Tensor:
        """(n, k) confidence vectors to (n, C, H, W) in [0, 1]."""
        image = self.body(truncated_logs(confidences)[:, :, None, None])
        return torch.sigmoid(image[..., : self.size[0], : self.size[1]])


@dataclass(frozen=True, kw_only=True)
class DecoderTraining:
    """How the decoder is trained: Adam on the mean squared error, until that is flat on images that are held out.

    The authors take 100 epochs of Adam at 2e-4; a length that is known would be too short behind one defence and too long
    behind another.

    Attributes:
        steps: at most so many.
        batch_size: images per step.
        learning_rate: of Adam.
        width: channels of the decoder at full resolution.
        tolerance: the training is over when the last doubling of the steps brought less than this, relative.
    """

    steps: int = 3000
    batch_size: int = 128
    learning_rate: float = 2e-3
    width: int = 16
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        whole("decoder", most=MOST_STEPS, steps=(self.steps, 1))
        whole("decoder", most=65_536, batch_size=(self.batch_size, 2))
        whole("decoder", most=1024, width=(self.width, 1))
        at_least("decoder", tolerance=(self.tolerance, 0))
        above_zero("decoder", learning_rate=self.learning_rate)


@dataclass(frozen=True, eq=False)
class LearntDecoder:
    """From confidence vectors to images.

    Attributes:
        network: frozen, on the device where it was trained.
        curve: the mean squared error on held-out images over the training.
    """

    network: ConfidenceDecoder
    curve: Curve

    @torch.no_grad()
    def __call__(self, confidences: Tensor) -> Tensor:
        """Return (n, C, H, W) in [0, 1], on the CPU, of confidence vectors (n, k)."""
        device = next(self.network.parameters()).device
        return torch.cat([self.network(some.to(device).float()).cpu() for some in confidences.split(CHUNK)])


def train_decoder(
    confidences: Tensor, images: Images, training: DecoderTraining, *, device: torch.device, stream: torch.Generator
) -> LearntDecoder:
    """Train a decoder on pairs of a confidence vector and its image (Yang et al. 2019, equation 2).

    Args:
        confidences: (n, k) what the classifier answers, n at least 2.
        images: the n images, in that order.
        training: see `DecoderTraining`.
        device: where to train.
        stream: the only source of randomness.
    """
    held = held_out(images, stream)
    measured = held if bool(held.any()) else torch.ones_like(held)
    learnt = (~held).nonzero()[:, 0] if bool((~held).any()) else torch.arange(len(images))
    seen = confidences.float()
    shown, originals = seen[measured].to(device), images.floats()[measured].to(device)
    classes, batch = seen.shape[1], min(training.batch_size, max(2, len(learnt)))

    def build() -> ConfidenceDecoder:
        return ConfidenceDecoder(classes, images.shape, training.width)

    def loss(network: ConfidenceDecoder) -> Tensor:
        at = learnt[torch.randint(len(learnt), (batch,), generator=stream)]
        x, _ = images.batch(at)
        return F.mse_loss(network(seen[at].to(device)), x.to(device))

    def error(network: ConfidenceDecoder) -> float:
        parts = zip(shown.split(CHUNK), originals.split(CHUNK), strict=True)
        return sum(float((network(some) - x).square().sum()) for some, x in parts) / originals.numel()

    trained = train_until_flat(
        seeded(build, stream).to(device).train(),
        loss,
        error,
        steps=training.steps,
        tolerance=training.tolerance,
        learning_rate=training.learning_rate,
        optimizer=Adam,
    )
    return LearntDecoder(trained.module.eval().requires_grad_(False), trained.curve)
