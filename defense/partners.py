"""Mixing images with others of the same client, and their labels by the same shares."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedveil.fl.data.images import Images
from fedveil.fl.training import as_shares


@dataclass(frozen=True)
class Partners:
    """Images to be mixed into others.

    Partners are drawn from all of them, and not from the batch that happens to be together: so an image that is alone in its
    step is mixed as well, and in an audit it is.

    Attributes:
        images: at least one; on a client its own, with an attacker those that it holds.
        classes: k.
    """

    images: Images = field(repr=False)
    classes: int

    def drawn(self, count: int, others: int, stream: torch.Generator) -> Tensor:
        """Return the numbers (n, p) of p partners for each of n images, drawn with replacement; an image may meet itself."""
        # Rows of uniform numbers, one for each image: an attacker compares candidates with the same partners for all.
        return (torch.rand((count, others), generator=stream) * len(self.images)).long()

    def mixed(self, x: Tensor, shares: Tensor, which: Tensor) -> Tensor:
        """Return what becomes of images.

        Args:
            x: (n, C, H, W).
            shares: (n, 1 + p) of the image itself and of each of its partners, each row of sum 1.
            which: (n, p) the partners' numbers.
        """
        weights = shares.view(*shares.shape, 1, 1, 1)
        theirs = (self.images.pixels[which].float() / 255.0 * weights[:, 1:]).sum(1)
        return weights[:, 0].to(x) * x + theirs.to(x)

    def labels(self, y: Tensor, shares: Tensor, which: Tensor) -> Tensor:
        """Return the shares (n, k) of the classes in such mixes of images with labels (n,), or shares (n, k), ``y``."""
        own = as_shares(y, self.classes)
        theirs = as_shares(self.images.labels[which.flatten()], self.classes).view(*which.shape, self.classes)
        return shares[:, :1].to(own) * own + (shares[:, 1:, None] * theirs).sum(1).to(own)
