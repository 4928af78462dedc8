"""The sigmoid LeNet of "Deep Leakage from Gradients" (Zhu et al. 2019, arXiv 1906.08935)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from fedveil.fl.models.base import MODELS, Classifier


@MODELS.register("lenet")
class LeNet(Classifier):
    """Three 5x5 convolutions (strides 2, 2, 1) with sigmoids, then one linear layer.

    As in the paper's published code, weights and biases are drawn from U(-0.5, 0.5). The sigmoid is twice
    differentiable everywhere, which is why this network is the usual easiest victim of gradient inversion.
    """

    norms: ClassVar[tuple[str, ...]] = ("none",)
    default_width: ClassVar[int] = 12
    smallest_side: ClassVar[int] = 8
    any_layout: ClassVar[bool] = True

    def __init__(self, *, image_shape: tuple[int, int, int], classes: int, norm: str, width: int) -> None:
        super().__init__()
        channels, height, side = image_shape
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 5, stride=2, padding=2),
            nn.Sigmoid(),
            nn.Conv2d(width, width, 5, stride=2, padding=2),
            nn.Sigmoid(),
            nn.Conv2d(width, width, 5, stride=1, padding=2),
            nn.Sigmoid(),
        )
        self.head = nn.Linear(width * -(-height // 4) * -(-side // 4), classes)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)

    def forward(self, images: Tensor) -> Tensor:
        """Return (n, classes) logits of (n, C, H, W) images."""
        logits: Tensor = self.head(self.body(images).flatten(1))
        return logits
