"""Clipping and Gaussian noise on the update, the mechanism of DP-FedAvg (McMahan et al. 2018) without an accountant."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fedveil.defense.base import DEFENSES, Defense, Surrogate
from fedveil.defense.checks import above_zero, at_least
from fedveil.fl.messages import ClientUpdate


@DEFENSES.register("update_noise")
@dataclass(frozen=True, kw_only=True)
class UpdateNoise(Defense[None]):
    """Scale the update to at most ``clip`` in L2 norm over all layers, then add N(0, (strength * clip)^2) to each entry.

    BatchNorm statistics are left out of the norm and get no noise; use a model without BatchNorm for a guarantee.

    Attributes:
        strength: noise multiplier, at least 0.
        clip: L2 bound of the whole update, above 0.
    """

    strength: float = 0.01
    clip: float = 1.0

    def __post_init__(self) -> None:
        at_least("update_noise", strength=(self.strength, 0))
        above_zero("update_noise", clip=self.clip)

    def update(self, update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
        """See `fedveil.fl.hooks.ClientHooks.update`."""
        norm = torch.stack([t.double().square().sum() for t in update.tensors.values()]).sum().sqrt()
        factor = float(torch.clamp(self.clip / norm.clamp_min(1e-12), max=1.0))
        std = self.strength * self.clip
        return replace(
            update,
            tensors={n: factor * t + std * torch.randn(t.shape, generator=stream) for n, t in update.tensors.items()},
        )

    def surrogate(self) -> Surrogate:
        """The mechanism itself: the attacker tunes its prior on updates that it clips and blurs the same way."""
        return Surrogate(update=self.update)
