"""A control: a plain loss of detail by a Gaussian blur, without noise and with nothing learnt."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fedveil.defense.base import DEFENSES, Defense
from fedveil.defense.checks import at_least
from fedveil.fl.errors import SettingError

REACH = 4
"""Standard deviations at which the kernel is cut off."""
MOST = 100
"""Beyond, small images are of one colour."""


@DEFENSES.register("blur")
@dataclass(frozen=True, kw_only=True)
class Blur(Defense[None]):
    """Train on blurred images.

    The image goes on beyond its edge as it is there. What a blur leaves out an attacker has to guess; what it only weakens
    an inverse brings back, since nothing is drawn at random.

    Attributes:
        strength: standard deviation of the Gaussian in pixels, at least 0 and at most 100.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        at_least("blur", strength=(self.strength, 0))
        if self.strength > MOST:
            raise SettingError("blur", "strength", self.strength, f"it has to be at most {MOST}")

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        """See `fedveil.fl.hooks.ClientHooks.data`."""
        if not self.strength:
            return x.clone()
        weights = self.kernel.to(x)
        reach, channels = len(weights) // 2, x.shape[1]
        for shape, padding in (((1, 1, -1, 1), (0, 0, reach, reach)), ((1, 1, 1, -1), (reach, reach, 0, 0))):
            kernel = weights.view(shape).repeat(channels, 1, 1, 1)
            x = F.conv2d(F.pad(x, padding, mode="replicate"), kernel, groups=channels)
        # Weights add up to 1 but for rounding.
        return x.clamp(0, 1)

    @property
    def kernel(self) -> Tensor:
        """The Gaussian's weights at whole pixels, (2 r + 1,) float64, which add up to 1."""
        reach = math.ceil(REACH * self.strength)
        at = torch.arange(-reach, reach + 1, dtype=torch.float64)
        weights = (-(at / self.strength).square() / 2).exp()
        return weights / weights.sum()
