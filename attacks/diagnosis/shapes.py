"""Which images a network takes, where nobody said it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn

from fedveil.attacks.diagnosis.wording import Wording
from fedveil.attacks.engine.attackable import count_classes
from fedveil.attacks.target.model import Mode, target_model
from fedveil.fl.errors import FedveilError

SIDES = (28, 32, 64, 128, 224, 16, 96, 256)
"""Those of MedMNIST and of CIFAR come first: networks that pool to one pixel take any."""


def likely_shape(model: nn.Module, mode: Mode, words: Wording) -> tuple[int, int, int]:
    """Return the first (C, H, W) of a few usual ones that a network takes.

    Raises:
        FedveilError: none fits.
    """
    for shape in _candidates(model):
        try:
            count_classes(target_model(model, image_shape=shape, classes=0, mode=mode))
        except FedveilError:
            continue
        return shape
    raise FedveilError(f"the model takes none of the usual images: say {words.image_shape}")


def _candidates(model: nn.Module) -> Iterator[tuple[int, int, int]]:
    """Of the first weight's inputs: channels of a convolution, pixels of a linear layer."""
    weight = next((p for p in model.parameters() if p.ndim > 1), None)
    if weight is None:
        return
    if weight.ndim == 2:
        for channels in (1, 3):
            side = math.isqrt(weight.shape[1] // channels)
            if channels * side * side == weight.shape[1]:
                yield channels, side, side
    channels = weight.shape[1] if weight.ndim == 4 else 1
    yield from ((channels, side, side) for side in SIDES)
