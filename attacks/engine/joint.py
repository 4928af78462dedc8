"""Images and labels looked for together: the variables are pixels and the logits of each image's label."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedveil.attacks.engine.distances import Distance, squared_distance
from fedveil.attacks.engine.objective import Problem
from fedveil.attacks.engine.unrolled import Path, slopes
from fedveil.attacks.priors import Prior, penalty_and_slope


@dataclass(frozen=True, eq=False)
class Joint:
    """The distance between gradients by images and labels (Zhu et al. 2019): an `Objective`.

    A victim's variables are its B * C * H * W pixels, then B * K logits, whose softmax are the labels.

    Attributes:
        problem: what to match; its labels are not used.
        shape: (B, C, H, W) of a victim's images.
        classes: K.
        path: how the clients trained; a path of one step is a gradient.
        distance: between gradients.
        priors: of the images, with their weights.
    """

    problem: Problem
    shape: tuple[int, int, int, int]
    classes: int
    path: Path
    distance: Distance = squared_distance
    priors: tuple[Prior, ...] = ()

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        images, logits = self.unpack(x)
        labels = logits.softmax(dim=2)
        soft = replace(self.problem, labels=labels)
        value, by_images, by_labels = slopes(soft, self.path, self.distance, images)
        # The softmax's own Jacobian: p * (g - <g, p>).
        by_logits = labels * (by_labels - (by_labels * labels).sum(dim=2, keepdim=True))
        if self.priors:
            penalty, rise = penalty_and_slope(self.priors, images)
            value, by_images = value + penalty, by_images + rise
        return value, self.pack(by_images, by_logits)

    def take(self, at: Tensor) -> Joint:
        """See `Objective`."""
        priors = tuple(prior.take(at) for prior in self.priors)
        return replace(self, problem=self.problem.take(at), path=self.path.take(at), priors=priors)

    def pack(self, images: Tensor, logits: Tensor) -> Tensor:
        """Return (V, n) variables of images (V, B, C, H, W) and logits (V, B, K)."""
        return torch.cat([images.flatten(1), logits.flatten(1)], dim=1)

    def unpack(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images (V, B, C, H, W) and logits (V, B, K) of variables (V, n)."""
        images, logits = x.split([x.shape[1] - self.shape[0] * self.classes, self.shape[0] * self.classes], dim=1)
        return images.reshape(len(x), *self.shape), logits.reshape(len(x), self.shape[0], self.classes)

    def bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least and greatest values (n,) of the variables: pixels are in [0, 1], logits anywhere."""
        pixels = torch.arange(like.shape[1], device=like.device) < like.shape[1] - self.shape[0] * self.classes
        infinite = torch.full_like(like[0], torch.inf)
        return torch.where(pixels, 0.0, -infinite), torch.where(pixels, 1.0, infinite)
