"""Updates of few bits per value: stochastic quantisation (Alistarh et al. 2017, arXiv 1610.02132)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from fedveil.defense.base import DEFENSES, Defense, Surrogate
from fedveil.fl.errors import SettingError
from fedveil.fl.messages import ClientUpdate

Scale = Literal["max", "l2"]
MOST_BITS = 16


@DEFENSES.register("quantisation")
@dataclass(frozen=True, kw_only=True)
class Quantisation(Defense[None]):
    """Send each value as one of a few levels, rounded up or down at random such that the mean stays: QSGD.

    Q(v) = scale * sign(v) * l / s, s = 2^(bits - 1) - 1 levels beside 0, and l one of the two whole numbers around
    s |v| / scale, the upper one with probability of the fraction (section 3.1). The scale is sent with each tensor. The
    paper quantises buckets of a tensor, and codes the levels by Elias; here a tensor is one bucket, and a value takes its
    bits.

    BatchNorm statistics are sent as they are.

    Attributes:
        bits: of each value, one for the sign among them; whole, 2 to 16.
        scale: ``max``, the tensor's largest magnitude, as in the paper's experiments, or ``l2``, its length, as in its
            theory: with that, nearly all values of a large tensor become 0.
    """

    dial: ClassVar[str] = "bits"

    bits: int = 4
    scale: Scale = "max"

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 2 <= self.bits <= MOST_BITS:
            raise SettingError(
                "quantisation", "bits", self.bits, f"it has to be a whole number, at least 2 and at most {MOST_BITS}"
            )
        if self.scale not in get_args(Scale):
            raise SettingError("quantisation", "scale", repr(self.scale), f"allowed: {', '.join(get_args(Scale))}")

    def quantised(self, tensor: Tensor, stream: torch.Generator) -> Tensor:
        """Return the tensor on its levels; a tensor of zeros stays."""
        if not tensor.any():
            return tensor
        scale = tensor.abs().max()
        if self.scale == "l2":  # squares of very small or large values are 0 or infinite
            scale = scale * (tensor / scale).norm()
        levels = 2 ** (self.bits - 1) - 1
        # Of a length, rounding may leave a single value a hair above 1.
        place = levels * (tensor.abs() / scale).clamp_max(1)
        upper = torch.rand(tensor.shape, generator=stream).to(tensor.device) < place - place.floor()
        rounded: Tensor = scale * tensor.sign() * (place.floor() + upper) / levels
        return rounded

    def update(self, update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
        """See `fedveil.fl.hooks.ClientHooks.update`."""
        tensors = {n: self.quantised(t, stream) for n, t in update.tensors.items()}
        return replace(update, tensors=tensors, value_bits=self.bits)

    def surrogate(self) -> Surrogate:
        """The quantiser: the attacker tunes its prior on updates that it rounds the same way."""
        return Surrogate(update=self.update)
