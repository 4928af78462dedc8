"""Total variation: neighbouring pixels of an image are alike."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedveil.defense.base import at_least


@dataclass(frozen=True)
class TotalVariation:
    """Anisotropic total variation (Rudin, Osher and Fatemi 1992, here by the absolute differences of each axis).

    >>> import torch
    >>> images = torch.tensor([[0.0, 1.0, 3.0], [2.0, 2.0, 2.0]]).expand(1, 1, 1, 2, 3)
    >>> TotalVariation(12)(images)
    tensor([25.0000])

    Attributes:
        weight: of mean |dx| + mean |dy| over all pixels and images of a victim, at least 0.
    """

    weight: float

    def __post_init__(self) -> None:
        at_least("total_variation", weight=(self.weight, 0))

    def __call__(self, x: Tensor) -> Tensor:
        """See `Prior`."""
        across, down = (x.diff(dim=axis).abs().flatten(1).mean(dim=1) for axis in (-1, -2))
        return self.weight * (across + down)

    def take(self, at: Tensor) -> TotalVariation:
        """See `Prior`."""
        return self
