"""Any classifier as an attack needs it: its gradient as the client computed it, fit for `torch.func`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

Mode = Literal["train", "eval"]
"""How the client's BatchNorm and dropout ran."""


@dataclass(frozen=True, eq=False)
class TargetModel:
    """The classifier under attack.

    Attributes:
        module: made fit by `target_model`; its weights are whatever it was made with, an observation brings its own.
        image_shape: (C, H, W).
        classes: number of classes.
        mode: see `Mode`.
    """

    module: nn.Module
    image_shape: tuple[int, int, int]
    classes: int
    mode: Mode = "train"
