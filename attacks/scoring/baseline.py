"""The no-gradient attacker: without any update, guess the mean of the auxiliary images of the victim's class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError


@dataclass(frozen=True, eq=False)
class ClassMeanGuess:
    """The mean auxiliary image of each class. Of all constant guesses per class it has the least expected MSE.

    Attributes:
        means: (k, C, H, W) float32 in [0, 1].
    """

    means: Tensor

    @classmethod
    def of(cls, auxiliary: Images, *, classes: int) -> ClassMeanGuess:
        """Average ``auxiliary`` per class; a class that it lacks gets the mean of all images.

        Raises:
            FedveilError: ``auxiliary`` is empty, or holds a label outside 0 to ``classes`` - 1.
        """
        if len(auxiliary) == 0:
            raise FedveilError("auxiliary data: the baseline needs at least one image, got none")
        if int(auxiliary.labels.min()) < 0 or int(auxiliary.labels.max()) >= classes:
            raise FedveilError(
                f"auxiliary data: expected labels from 0 to {classes - 1}, got {int(auxiliary.labels.max())}"
            )
        means = auxiliary.pixels.double().mean(0).expand(classes, *auxiliary.shape).clone()
        for label in torch.unique(auxiliary.labels).tolist():
            means[label] = auxiliary.pixels[auxiliary.labels == label].double().mean(0)
        return cls((means / 255.0).to(torch.float32))

    def guess(self, labels: Tensor) -> Tensor:
        """Return the (n, C, H, W) guesses for the (n,) true ``labels``, on the labels' device."""
        return self.means.to(labels.device)[labels]
