"""A multilayer perceptron on the flattened image: its first layer gives single images away, whatever stands behind it."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from fedveil.fl.models.base import MODELS, Classifier


@MODELS.register("mlp")
class MLP(Classifier):
    """Flatten, then three linear layers with ReLUs between them, both hidden ones ``width`` wide.

    The gradient of the first layer is an outer product of errors and pixels, which `fedveil.attacks.analytic.attack` solves.
    So it is the worst case of a federation's leakage, and no network to deploy.
    """

    norms: ClassVar[tuple[str, ...]] = ("none",)
    default_width: ClassVar[int] = 256
    smallest_side: ClassVar[int] = 8

    def __init__(self, *, image_shape: tuple[int, int, int], classes: int, norm: str, width: int) -> None:
        super().__init__()
        channels, height, side = image_shape
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * height * side, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return (n, classes) logits of (n, C, H, W) images."""
        logits: Tensor = self.head(self.body(images))
        return logits
