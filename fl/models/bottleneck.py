"""A variational bottleneck before a classifier's last layer, as PRECODE puts it there."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedveil.fl.errors import FedveilError

NAME = "bottleneck"
"""What the module is called where it is put; its parameters' names hold it."""


class VariationalBottleneck(nn.Module):
    """Encode features as a Gaussian, draw a code from it, and decode that into features of the same length.

    Scheliga et al. 2022 (arXiv 2108.04725, section 3): (mean, deviation) = E(h), z = mean + deviation * n with n ~ N(0, I),
    and D(z) takes the place of h; E and D are linear, and the deviation is positive by a softplus, as in the code that
    they publish. In evaluation mode the code is its mean: how a finished model answers need not be left to chance.

    Args:
        features: D, of one image.
        size: K, values of the code.

    Attributes:
        noise: (1, K), or (n, K) of each image, what is added to n: zero, and no part of what server and clients exchange. An
            attacker that has found out what was drawn sets it.
    """

    noise: Tensor

    def __init__(self, features: int, size: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(features, 2 * size)
        self.decoder = nn.Linear(size, features)
        self.register_buffer("noise", torch.zeros(1, size), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """(n, D) to (n, D)."""
        mean, deviation = gaussian(self.encoder(features))
        noise = self.noise
        if self.training:
            noise = noise + torch.randn_like(mean)
        decoded: Tensor = self.decoder(mean + deviation * noise)
        return decoded


class Bottlenecked(nn.Module):
    """A bottleneck and the layer behind it.

    Args:
        layer: the classifier's last.
        size: K.
    """

    def __init__(self, layer: nn.Linear, size: int) -> None:
        super().__init__()
        self.add_module(NAME, VariationalBottleneck(layer.in_features, size))
        self.layer = layer

    def forward(self, features: Tensor) -> Tensor:
        """(n, D) to what the layer gives."""
        logits: Tensor = self.layer(self.get_submodule(NAME)(features))
        return logits


def gaussian(encoded: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the deviation (n, K) of the code, of what the encoder gives (n, 2 K)."""
    mean, spread = encoded.chunk(2, dim=1)
    return mean, F.softplus(spread)


def insert_bottleneck(model: nn.Module, size: int) -> None:
    """Put a bottleneck before the last of a classifier's linear layers, in place.

    Raises:
        FedveilError: the classifier has none.
    """
    layers = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    if not layers or not layers[-1]:
        raise FedveilError(f"model {type(model).__name__} has no linear layer to put a bottleneck before")
    parent, _, own = layers[-1].rpartition(".")
    last = model.get_submodule(layers[-1])
    assert isinstance(last, nn.Linear)  # those alone were listed
    setattr(model.get_submodule(parent), own, Bottlenecked(last, size))


def bottleneck_of(model: nn.Module) -> str | None:
    """Return the name of a classifier's bottleneck; None where it has none."""
    return next((name for name, part in model.named_modules() if isinstance(part, VariationalBottleneck)), None)
