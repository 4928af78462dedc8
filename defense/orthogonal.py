"""Noise that is orthogonal to the update, layer by layer, after CENSOR (Zhang et al. 2025, arXiv 2501.15718)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedveil.defense.base import DEFENSES, Defense, Surrogate
from fedveil.defense.checks import at_least
from fedveil.fl.messages import ClientUpdate


@DEFENSES.register("orthogonal_perturbation")
@dataclass(frozen=True, kw_only=True)
class OrthogonalPerturbation(Defense[None]):
    """Add to each layer a random direction orthogonal to it, as long as the layer itself.

    sent = g + strength * |g| u, u uniform on the unit vectors with <u, g> = 0, per tensor (CENSOR's equation 12, without the
    error of its published code, which divides the projection by |g| instead of |g|^2 and so is orthogonal where |g| = 1
    alone). The angle to the true gradient is then the same for all layers and clients, arctan(strength).

    CENSOR sends u alone, without g, and draws many u of which the client keeps the one that lowers its loss most. An update
    hook does not see the loss; without that choice u alone would teach nothing, so g stays in.

    A tensor of one value has no orthogonal direction, and is sent as it is. BatchNorm statistics are, too.

    Attributes:
        strength: length of the perturbation in units of the tensor's, at least 0.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        at_least("orthogonal_perturbation", strength=(self.strength, 0))

    def perturbed(self, tensor: Tensor, stream: torch.Generator) -> Tensor:
        """Return the tensor with its perturbation."""
        noise = torch.randn(tensor.shape, generator=stream).to(tensor.device).double()
        own = tensor.double()
        length = own.norm()
        if tensor.numel() < 2 or not length > 0:
            return tensor
        across = noise - (noise * own).sum() / length**2 * own
        sent: Tensor = own + self.strength * length * across / across.norm()
        return sent.to(tensor.dtype)

    def update(self, update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
        """See `fedveil.fl.hooks.ClientHooks.update`."""
        return replace(update, tensors={n: self.perturbed(t, stream) for n, t in update.tensors.items()})

    def surrogate(self) -> Surrogate:
        """The law of the perturbation: the attacker tunes its prior on updates that it perturbs alike.

        What is sent is itself the best guess of each layer's direction; the mean of several observations is a better one.
        """
        return Surrogate(update=self.update)
