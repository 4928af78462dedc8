"""A small ReLU network for images of about 28 to 64 pixels."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from fedveil.fl.models.base import MODELS, Classifier
from fedveil.fl.models.norms import norm_layer


@MODELS.register("convnet")
class ConvNet(Classifier):
    """Three stages of 3x3 convolution, normalisation, ReLU and 2x2 average pool, then a linear layer.

    The stages have ``width``, ``2 width`` and ``4 width`` channels. Average rather than maximum pooling lets
    every pixel act on the gradient, so that an attack on it measures the defence and not the pooling.
    """

    norms: ClassVar[tuple[str, ...]] = ("group", "none", "batch")
    default_width: ClassVar[int] = 32
    smallest_side: ClassVar[int] = 8
    any_layout: ClassVar[bool] = True

    def __init__(self, *, image_shape: tuple[int, int, int], classes: int, norm: str, width: int) -> None:
        super().__init__()
        channels, height, side = image_shape
        sizes = [channels, width, 2 * width, 4 * width]
        self.body = nn.Sequential(
            *(
                nn.Sequential(
                    # A normalisation brings its own shift, so the convolution's bias would be idle.
                    nn.Conv2d(before, after, 3, padding=1, bias=norm == "none"),
                    norm_layer(norm, after),
                    nn.ReLU(),
                    nn.AvgPool2d(2),
                )
                for before, after in pairwise(sizes)
            )
        )
        self.head = nn.Linear(sizes[-1] * (height // 8) * (side // 8), classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return (n, classes) logits of (n, C, H, W) images."""
        logits: Tensor = self.head(self.body(images).flatten(1))
        return logits
