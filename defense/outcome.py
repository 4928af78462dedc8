"""How a minimax training ended: whether the perturbed images still carry their classes, and what the adversary rebuilds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from fedveil.defense.minimax import MinimaxModules, class_mean_error, perturbed
from fedveil.defense.public_models import PublicModels
from fedveil.fl.data.images import Images

HELD_OUT = 0.15


@dataclass(frozen=True)
class Outcome:
    """How a minimax training ended, on images that it did not train on.

    Attributes:
        clean_accuracy: of the public reference on untouched images.
        accuracy: of the local classifier on perturbed images.
        majority: share of the commonest class.
        images: how many were tried.
        adversary_error: MSE of the co-trained adversary as a multiple of the class-mean guess's.
    """

    clean_accuracy: float
    accuracy: float
    majority: float
    images: int
    adversary_error: float

    @property
    def collapsed(self) -> bool:
        """The perturbed images carry hardly any class: under a quarter of what untouched ones carry beyond a guess.

        Few images prove little: the upper end of the accuracy's 95 % interval (Wilson 1927) has to be under that quarter.
        """
        carried = self.clean_accuracy - self.majority
        z2 = 1.96**2 / self.images
        spread = math.sqrt(z2 * self.accuracy * (1 - self.accuracy) + z2**2 / 4)
        most = (self.accuracy + z2 / 2 + spread) / (1 + z2)
        return carried > 0 and most - self.majority < 0.25 * carried

    def diagnostics(self) -> dict[str, float]:
        """The numbers that belong beside the results."""
        return {
            "collapsed": float(self.collapsed),
            "local_accuracy": self.accuracy,
            "adversary_error": self.adversary_error,
        }


def hold_out(images: Images, stream: torch.Generator) -> tuple[Images, Images]:
    """Return (images to train on, images to measure on): a few are held out, or with too few to spare none."""
    count = int(len(images) * HELD_OUT)
    if count == 0:
        return images, images
    order = torch.randperm(len(images), generator=stream)
    return images.take(order[count:]), images.take(order[:count])


@torch.no_grad()
def measure(
    images: Images, models: PublicModels, modules: MinimaxModules, public: Images, stream: torch.Generator
) -> Outcome:
    """Measure on ``images``, on the CPU, how a minimax training ended. The class means come from ``public``."""
    x, y = images.floats(), images.labels
    defended = perturbed(models.autoencoder, modules.defender, models.autoencoder.encode(x), stream)
    error = float(F.mse_loss(modules.adversary(defended), x))
    return Outcome(
        clean_accuracy=float((models.reference(x).argmax(1) == y).float().mean()),
        accuracy=float((modules.classifier(defended).argmax(1) == y).float().mean()),
        majority=float(y.bincount().max()) / len(y),
        images=len(y),
        adversary_error=error / max(class_mean_error(images, public), 1e-6),
    )
