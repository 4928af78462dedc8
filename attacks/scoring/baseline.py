"""The no-gradient attacker: without any update, guess the mean of the public images of the victim's class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError


@dataclass(frozen=True, eq=False)
class ClassMeanGuess:
    """The mean public image of each class. Of all constant guesses per class it has the least expected MSE.

    Attributes:
        means: (k, C, H, W) float32 in [0, 1].
    """

    means: Tensor

    @classmethod
    def from_public(cls, public: Images, *, classes: int) -> ClassMeanGuess:
        """Average ``public`` per class; a class that it lacks gets the mean of all images.

        Raises:
            FedveilError: ``public`` is empty, or holds a label outside 0 to ``classes`` - 1.
        """
        if len(public) == 0:
            raise FedveilError("public data: the no-gradient floor needs at least one image, got none")
        if int(public.labels.min()) < 0 or int(public.labels.max()) >= classes:
            raise FedveilError(f"public data: expected labels from 0 to {classes - 1}, got {int(public.labels.max())}")
        means = public.pixels.double().mean(0).expand(classes, *public.shape).clone()
        for label in torch.unique(public.labels).tolist():
            means[label] = public.pixels[public.labels == label].double().mean(0)
        return cls((means / 255.0).to(torch.float32))

    def guess(self, labels: Tensor) -> Tensor:
        """Return the (n, C, H, W) guesses for the (n,) true ``labels``, on the labels' device."""
        return self.means.to(labels.device)[labels]
