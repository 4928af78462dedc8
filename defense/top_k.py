"""Top-k sparsification of the update (gradient compression; as a defence: Zhu et al. 2019, section 5.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedveil.defense.base import DEFENSES, Defense, Gradients, Surrogate
from fedveil.fl.errors import SettingError
from fedveil.fl.messages import ClientUpdate


def keep_largest(tensor: Tensor, keep: float) -> Tensor:
    """Zero all but the ceil(keep * n) entries of largest magnitude; ties go to the lower index."""
    count = _kept(tensor, keep)
    order = tensor.flatten().abs().argsort(descending=True, stable=True)
    sparse = torch.zeros_like(tensor).flatten()
    sparse[order[:count]] = tensor.flatten()[order[:count]]
    return sparse.view_as(tensor)


def _kept(tensor: Tensor, keep: float) -> int:
    # 0.07 * 100 is a hair above 7 in floating point; that must not keep an eighth entry.
    return max(1, math.ceil(keep * tensor.numel() - 1e-9))


@DEFENSES.register("top_k")
@dataclass(frozen=True, kw_only=True)
class TopK(Defense[None]):
    """Send the largest entries of each tensor only.

    Attributes:
        keep: share of the entries of each tensor that is sent, in (0, 1].
    """

    dial: ClassVar[str] = "keep"

    keep: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise SettingError("top_k", "keep", self.keep, "it has to be above 0 and at most 1")

    def update(self, update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
        """See `fedveil.fl.hooks.ClientHooks.update`."""
        return replace(update, tensors={n: keep_largest(t, self.keep) for n, t in update.tensors.items()})

    def surrogate(self) -> Surrogate:
        """The attacker matches what was sent and ignores the zeros that were put in.

        Where fewer entries than could have been sent are not zero, all that were left out were zero of themselves.
        """

        def visible(observed: Gradients) -> dict[str, Tensor]:
            masks = {}
            for name, tensor in observed.items():
                sent = tensor != 0
                all_known = int(sent.sum()) < _kept(tensor, self.keep)
                masks[name] = torch.ones_like(tensor) if all_known else sent.to(tensor.dtype)
            return masks

        return Surrogate(update=self.update, visible=visible)
