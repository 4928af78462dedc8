"""Images of three classes, each one constant pattern, and a classifier that knows them: what an inversion has to find."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedveil.fl.data.images import Images

CLASSES, SIDE = 3, 12
SHAPE = (1, SIDE, SIDE)


def patterns() -> Tensor:
    """One image for each class: a bright band at the top, in the middle or at the bottom."""
    x = torch.full((CLASSES, *SHAPE), 0.2)
    for label in range(CLASSES):
        x[label, :, 4 * label : 4 * label + 4] = 0.8
    return x


def bands(count: int, *, noise: float = 0.0, seed: int = 0) -> Images:
    """The patterns in turn."""
    labels = torch.arange(count) % CLASSES
    x = patterns()[labels]
    x = x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    return Images((x.clamp(0, 1) * 255).round().to(torch.uint8), labels)


class Templates(nn.Module):
    """Logits are minus the mean squared distance to each pattern, times ``sharpness``."""

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(sharpness), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        distance = (x[:, None] - patterns()[None]).square().mean((2, 3, 4))
        return -self.sharpness * distance
