"""Noise where an update tells most, after Outpost (Wang et al. 2023, INFOCOM)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedveil.defense.base import DEFENSES, Defense, Surrogate
from fedveil.defense.checks import at_least
from fedveil.fl.errors import SettingError
from fedveil.fl.messages import ClientUpdate


@DEFENSES.register("outpost")
@dataclass(frozen=True, kw_only=True)
class Outpost(Defense[None]):
    """Drop small values, and add Gaussian noise to the large ones, more of it in layers that vary more.

    Per tensor, the ``prune`` share of smallest magnitudes becomes 0. Over all tensors, the ``share`` of values whose squares
    are largest, the diagonal of the empirical Fisher information of one batch, get N(0, (strength * s)^2), s the root mean
    square of the tensor's own values. The rest is sent as it is.

    Outpost takes for s the variance of the layer's weights, and perturbs with a probability that decays with the client's
    iterations. An update hook sees neither weights nor the round, so here the spread of what the layer sends stands in, and
    every update is perturbed; nothing weakens as training goes on.

    BatchNorm statistics are sent as they are.

    Attributes:
        strength: standard deviation of the noise in units of the tensor's root mean square, at least 0.
        share: of all values that get noise, above 0 and at most 1.
        prune: share of each tensor's values that becomes 0, at least 0 and below 1.
    """

    strength: float = 1.0
    share: float = 0.4
    prune: float = 0.2

    def __post_init__(self) -> None:
        at_least("outpost", strength=(self.strength, 0))
        if not 0 < self.share <= 1:
            raise SettingError("outpost", "share", self.share, "it has to be above 0 and at most 1")
        if not 0 <= self.prune < 1:
            raise SettingError("outpost", "prune", self.prune, "it has to be at least 0 and below 1")

    def update(self, update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
        """See `fedveil.fl.hooks.ClientHooks.update`."""
        if not update.tensors:
            return update
        squares = torch.cat([t.flatten().square() for t in update.tensors.values()])
        # kthvalue counts from the smallest.
        least = squares.kthvalue(len(squares) - _part(self.share, len(squares)) + 1).values
        return replace(update, tensors={n: self._perturbed(t, least, stream) for n, t in update.tensors.items()})

    def _perturbed(self, tensor: Tensor, least: Tensor, stream: torch.Generator) -> Tensor:
        noise = torch.randn(tensor.shape, generator=stream).to(tensor.device)
        spread = self.strength * tensor.square().mean().sqrt()
        return pruned(tensor, self.prune) + spread * noise * (tensor.square() >= least)

    def surrogate(self) -> Surrogate:
        """The mechanism itself: the attacker tunes its prior on updates that it perturbs alike."""
        return Surrogate(update=self.update)


def _part(share: float, count: int) -> int:
    # 0.07 * 100 is a hair above 7 in floating point.
    return max(1, math.ceil(share * count - 1e-9))


def pruned(tensor: Tensor, share: float) -> Tensor:
    """Zero the floor(share * n) entries of smallest magnitude; of equal ones, those with the lower index."""
    count = math.floor(share * tensor.numel() + 1e-9)
    kept = tensor.flatten().clone()
    kept[kept.abs().argsort(stable=True)[:count]] = 0
    return kept.view_as(tensor)
