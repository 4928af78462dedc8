"""He et al. 2015 (arXiv 1512.03385): ResNet-18, and its ResNet-20 for CIFAR (section 4.2)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from fedveil.fl.models.base import MODELS, Classifier
from fedveil.fl.models.norms import norm_layer


def _conv(before: int, after: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut (figure 2 of the paper)."""

    def __init__(self, before: int, after: int, stride: int, norm: str, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = _conv(before, after, 3, stride)
        self.norm1 = norm_layer(norm, after)
        self.conv2 = _conv(after, after, 3)
        self.norm2 = norm_layer(norm, after)
        self.shortcut = shortcut

    def forward(self, features: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(features)))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(features))


class _PaddedShortcut(nn.Module):
    """Shortcut A of section 3.3: every second pixel, and zeros for the new channels. It has no parameters."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.extra = after - before

    def forward(self, features: Tensor) -> Tensor:
        return F.pad(features[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.extra))


def _projection(before: int, after: int, norm: str) -> nn.Module:
    """Shortcut B of section 3.3: a strided 1x1 convolution with its normalisation."""
    return nn.Sequential(_conv(before, after, 1, 2), norm_layer(norm, after))


def _stem(channels: int, width: int, norm: str, side: int) -> nn.Module:
    # On small images the stem of the ImageNet network would throw most pixels away before the first block.
    if side <= 64:
        return nn.Sequential(_conv(channels, width, 3), norm_layer(norm, width), nn.ReLU())
    return nn.Sequential(
        _conv(channels, width, 7, 2),
        norm_layer(norm, width),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    )


@MODELS.register("resnet18")
class ResNet18(Classifier):
    """ResNet-18, four stages of two blocks with projection shortcuts, global average pool, linear layer.

    Above 64 pixels it is the ImageNet network (7x7 stem of stride 2, maximum pool); up to 64 the stem is one
    3x3 convolution of stride 1.
    """

    norms: ClassVar[tuple[str, ...]] = ("group", "batch")
    default_width: ClassVar[int] = 64
    smallest_side: ClassVar[int] = 16
    any_layout: ClassVar[bool] = True

    def __init__(self, *, image_shape: tuple[int, int, int], classes: int, norm: str, width: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = [_Block(width, width, 1, norm, nn.Identity()) for _ in range(2)]
        for before in (width, 2 * width, 4 * width):
            after = 2 * before
            blocks.append(_Block(before, after, 2, norm, _projection(before, after, norm)))
            blocks.append(_Block(after, after, 1, norm, nn.Identity()))
        self.stem = _stem(image_shape[0], width, norm, max(image_shape[1:]))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(8 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return (n, classes) logits of (n, C, H, W) images."""
        logits: Tensor = self.head(self.blocks(self.stem(images)).mean((2, 3)))
        return logits


@MODELS.register("resnet20")
class ResNet20(Classifier):
    """The CIFAR network with n = 3: three stages of three blocks, shortcuts without parameters."""

    norms: ClassVar[tuple[str, ...]] = ("group", "batch")
    default_width: ClassVar[int] = 16
    smallest_side: ClassVar[int] = 8
    any_layout: ClassVar[bool] = True

    def __init__(self, *, image_shape: tuple[int, int, int], classes: int, norm: str, width: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = [_Block(width, width, 1, norm, nn.Identity()) for _ in range(3)]
        for before in (width, 2 * width):
            after = 2 * before
            blocks.append(_Block(before, after, 2, norm, _PaddedShortcut(before, after)))
            blocks.extend(_Block(after, after, 1, norm, nn.Identity()) for _ in range(2))
        self.stem = nn.Sequential(_conv(image_shape[0], width, 3), norm_layer(norm, width), nn.ReLU())
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return (n, classes) logits of (n, C, H, W) images."""
        logits: Tensor = self.head(self.blocks(self.stem(images)).mean((2, 3)))
        return logits
