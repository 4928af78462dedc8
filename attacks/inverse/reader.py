"""The attacker's own classifier: reads the class from defended images and from what the inverse makes of them, untold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedveil.attacks.scoring.augment import class_keeping_mirrors
from fedveil.defense.devices import on_device
from fedveil.defense.inverse.learnt import InverseTraining, LearntInverse
from fedveil.defense.inverse.lessons import CHUNK, Lessons, gathered
from fedveil.defense.inverse.muon import Muon
from fedveil.fl.models import ModelSpec, build_model
from fedveil.fl.seeding import derive_seed
from fedveil.fl.until_flat import Curve, train_until_flat

SIDE = 32
"""Images are shrunk to this side: classes are read from shapes, and time does not grow with the images."""


class _Network(nn.Module):
    """A small ConvNet over everything that the attacker has to look at, as channels."""

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int, seed: int) -> None:
        super().__init__()
        channels, height, width = shape
        size = (min(height, SIDE), min(width, SIDE))
        self.shrink = nn.AdaptiveAvgPool2d(size)
        self.network = build_model(ModelSpec("convnet", (channels, *size), classes, norm="batch", width=width), seed)

    def forward(self, shown: Tensor) -> Tensor:
        """Return (n, classes) logits."""
        logits: Tensor = self.network(self.shrink(shown))
        return logits


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads classes from what was seen of images.

    Attributes:
        network: on the CPU, frozen.
        inverse: of the defence, applied without labels; None where the defence leaves images alone.
        observations: R, draws of one image that it was trained for.
        accuracy: on held-out auxiliary images, the mean over their classes.
        curve: of the training: the cross-entropy on those images, every class counting alike.
    """

    network: nn.Module
    inverse: LearntInverse | None
    observations: int
    accuracy: float
    curve: Curve

    @torch.no_grad()
    def __call__(self, draws: Tensor) -> Tensor:
        """Return the (n,) int64 classes that are read, on the CPU, from draws (R, n, C, H, W) in [0, 1]."""
        network = on_device(self.network, draws.device)
        parts = draws.split(CHUNK, dim=1)
        return torch.cat([network(_shown(some, self.inverse, self.observations)).argmax(1) for some in parts]).cpu()


def train_reader(
    lessons: Lessons,
    inverse: LearntInverse | None,
    training: InverseTraining,
    *,
    classes: int,
    device: torch.device,
    stream: torch.Generator,
) -> Reader:
    """Train on auxiliary images, defended, varied and all classes equally often, until that is flat on held-out ones.

    Args:
        lessons: the attacker's images, of two classes at least, and what the defence makes of them.
        inverse: of the defence; None where it leaves images alone.
        training: bounds the steps and gives the width; see `InverseTraining`.
        classes: k.
        device: where to train.
        stream: the only source of randomness.
    """
    train, observations = lessons.train, lessons.observations
    mirrored = class_keeping_mirrors(train, lessons.held_out)
    _, labels, seen = lessons.measured
    looked_at = torch.cat([_shown(some, inverse, observations) for some in seen.split(CHUNK, dim=1)])
    shares = (1.0 / train.labels.bincount().clamp(min=1))[train.labels]
    counts = labels.bincount(minlength=classes)
    weights = 1.0 / counts.clamp(min=1)

    def loss(network: nn.Module) -> Tensor:
        at = torch.multinomial(shares, training.batch_size, replacement=True, generator=stream)
        _, y, drawn = lessons.batch(at, stream, mirrored=mirrored)
        logits: Tensor = network(_shown(drawn, inverse, observations))
        return F.cross_entropy(logits, y)

    def error(network: nn.Module) -> float:
        return float(F.cross_entropy(torch.cat([network(some) for some in looked_at.split(CHUNK)]), labels, weights))

    channels = looked_at.shape[1]
    shape = (channels, *train.shape[1:])
    seed = derive_seed(int(torch.randint(2**31, (1,), generator=stream)), "reader")
    trained = train_until_flat(
        _Network(shape, classes, training.width, seed).to(device),
        loss,
        error,
        steps=training.steps,
        tolerance=training.tolerance,
        learning_rate=training.learning_rate,
        optimizer=Muon,
    )
    reader = Reader(trained.module.cpu(), inverse, observations, 0.0, trained.curve)
    right = (reader(seen) == labels.cpu()).float()
    per_class = (
        torch.zeros(classes).index_add(0, labels.cpu(), right)[counts.cpu() > 0] / counts.cpu()[counts.cpu() > 0]
    )
    return Reader(reader.network, inverse, observations, float(per_class.mean()), trained.curve)


@torch.no_grad()
def _shown(draws: Tensor, inverse: LearntInverse | None, observations: int) -> Tensor:
    """What the classifier looks at, as channels: the mean of the draws, their spread, and the image behind them."""
    draws_used = gathered(draws, observations)
    parts = [draws_used.mean(dim=0)]
    if observations > 1:
        parts.append(draws_used.std(dim=0))
    if inverse is not None:
        parts.append(inverse(draws, None))
    return torch.cat(parts, dim=1)
