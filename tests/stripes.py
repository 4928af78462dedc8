"""Images of two classes that anything can learn."""

from __future__ import annotations

import torch

from fedveil.fl.data.images import Images
from fedveil.fl.seeding import torch_stream

SIDE = 12


def stripes(n: int, seed: int, channels: int = 1) -> Images:
    """Two easy classes: bright rows at the top (0) or at the bottom (1), with noise."""
    stream = torch_stream(seed, "stripes")
    labels = torch.arange(n) % 2
    pixels = torch.randint(0, 80, (n, channels, SIDE, SIDE), generator=stream)
    pixels[labels == 0, :, : SIDE // 2] += 150
    pixels[labels == 1, :, SIDE // 2 :] += 150
    return Images(pixels.to(torch.uint8), labels)
