"""The size of an image: pixels are near mid-grey."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedveil.defense.checks import at_least


@dataclass(frozen=True)
class ImageNorm:
    """The mean squared distance from mid-grey, the L2 term of See through Gradients (Yin et al. 2021).

    >>> import torch
    >>> ImageNorm(4)(torch.tensor([0.5, 1.0]).view(1, 1, 1, 1, 2))
    tensor([0.5000])

    Attributes:
        weight: of the mean over all pixels and images of a victim, at least 0.
    """

    weight: float

    def __post_init__(self) -> None:
        at_least("image_norm", weight=(self.weight, 0))

    def __call__(self, x: Tensor) -> Tensor:
        """See `Prior`."""
        return self.weight * (x - 0.5).square().flatten(1).mean(dim=1)

    def take(self, at: Tensor) -> ImageNorm:
        """See `Prior`."""
        return self
