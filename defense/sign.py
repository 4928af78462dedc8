"""Updates of one bit per value: signs alone, with a common size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from fedveil.defense.base import DEFENSES, Defense, Surrogate
from fedveil.defense.checks import above_zero
from fedveil.fl.errors import SettingError
from fedveil.fl.messages import ClientUpdate

Scale = Literal["mean", "fixed"]


@DEFENSES.register("sign")
@dataclass(frozen=True, kw_only=True)
class Sign(Defense[None]):
    """Send the sign of each value, and one size per tensor.

    The compression of signSGD (Bernstein et al. 2018, arXiv 1802.04434). With the tensor's mean magnitude for a size, what
    is sent is the closest of all vectors of signs times a size (Karimireddy et al. 2019, arXiv 1901.09847, without their
    error feedback). Values of exactly 0 are sent as 0, and take a sign by chance in a real encoding. The server averages
    what it gets, where signSGD lets clients vote.

    BatchNorm statistics are sent as they are.

    Attributes:
        scale: ``mean``, each tensor's own mean magnitude, or ``fixed``, the same for all tensors and clients, so that sizes
            tell nothing.
        size: of each value where the scale is fixed, above 0, in units of the update.
    """

    dial: ClassVar[str] = "size"

    scale: Scale = "mean"
    size: float = 1e-3

    def __post_init__(self) -> None:
        if self.scale not in get_args(Scale):
            raise SettingError("sign", "scale", repr(self.scale), f"allowed: {', '.join(get_args(Scale))}")
        above_zero("sign", size=self.size)

    def signs(self, tensor: Tensor) -> Tensor:
        """Return the tensor's signs at their size."""
        if tensor.numel() == 0:
            return tensor
        size = tensor.abs().mean() if self.scale == "mean" else self.size
        return size * tensor.sign()

    def update(self, update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
        """See `fedveil.fl.hooks.ClientHooks.update`."""
        return replace(update, tensors={n: self.signs(t) for n, t in update.tensors.items()}, value_bits=1)

    def surrogate(self) -> Surrogate:
        """The same rule: the attacker tunes its prior on updates of which it keeps the signs, too."""
        return Surrogate(update=self.update)
