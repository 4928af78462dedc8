"""PRECODE: a variational bottleneck in the model, so that gradients depend on what it draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fedveil.defense.base import DEFENSES, Defense, Gradients, Surrogate
from fedveil.defense.checks import at_least, whole
from fedveil.defense.hidden import features_of, untouched
from fedveil.fl.errors import FedveilError
from fedveil.fl.models import ModelSpec
from fedveil.fl.models.bottleneck import NAME, bottleneck_of, gaussian

ONE_IMAGE = 1e-3
"""Share of a gradient's length that may be off the product of two vectors where it is one image's; rounding makes 1e-6."""


@DEFENSES.register("precode")
@dataclass(frozen=True, kw_only=True)
class Precode(Defense[None]):
    """Train a classifier with a variational bottleneck before its last layer.

    PRECODE (Scheliga et al. 2022, arXiv 2108.04725): in each step the bottleneck draws the features that the last layer
    sees, so that one image sends another gradient each time. The loss gets ``strength`` times the mean divergence of its
    codes from N(0, I),

        KL = 1/2 sum of (deviation^2 + mean^2 - 1 - 2 log deviation),

    in nats, where the published code counts bits. It is read in a second forward pass, since a loss hook is called when the
    first is over. The server sends and averages the bottleneck as it does the rest of the model, and the classifiers of
    ``references`` have it, too. A finished model takes the mean of each code.

    An attacker knows all that but what was drawn. It leaves the bottleneck's own gradients out of the match, as Scheliga et
    al. 2022b (arXiv 2208.04767) attack their own defence. Of several images it takes codes to be their means. Of one image
    and one step it can tell what was drawn: the gradient of a linear layer with a bias is (dL/dy) x^T beside dL/dy, so that
    what enters encoder and decoder, h and z, is their ratio, and n = (z - mean(h)) / deviation(h). With that the model is as
    deterministic as without a bottleneck. Balunovic et al. 2022 (arXiv 2111.04706) break the defence, too.

    Attributes:
        strength: of the divergence, at least 0; 0.001 in the paper.
        size: values of the code, at least 1; 256 in the paper.
    """

    strength: float = 1e-3
    size: int = 256

    def __post_init__(self) -> None:
        at_least("precode", strength=(self.strength, 0))
        whole("precode", most=65_536, size=(self.size, 1))

    def classifier(self, spec: ModelSpec) -> ModelSpec:
        """See `Defense.classifier`."""
        return replace(spec, bottleneck=self.size)

    def loss(self, loss: Tensor, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """See `fedveil.fl.hooks.ClientHooks.loss`.

        Raises:
            FedveilError: the model has no bottleneck.
        """
        name = bottleneck_of(model)
        if name is None:
            raise FedveilError(
                f"precode: {type(model).__name__} has no bottleneck; allowed: a model that was built for this defence"
            )
        if not self.strength:
            return loss
        with untouched(model):
            (encoded,) = features_of(model, x, [f"{name}.encoder"])
        return loss + self.strength * divergence(*gaussian(encoded)).mean()

    def surrogate(self) -> Surrogate:
        """The loss, which gradients to match, and what they say of the draw."""
        return Surrogate(loss=self.loss, visible=visible, revealed=revealed)


def divergence(mean: Tensor, deviation: Tensor) -> Tensor:
    """Return the (n,) Kullback-Leibler divergence of N(mean, deviation^2) from N(0, I), in nats, of (n, K) each."""
    return (deviation.square() + mean.square() - 1 - 2 * deviation.log()).sum(1) / 2


def visible(observed: Gradients) -> dict[str, Tensor]:
    """Return masks that leave out the bottleneck: where the draw is known, too, its long gradient drowns the others."""
    return {
        name: torch.zeros_like(tensor) if NAME in name.split(".") else torch.ones_like(tensor)
        for name, tensor in observed.items()
    }


def revealed(observed: Gradients, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the bottleneck's ``noise`` by its name in the model; nothing where the update does not tell.

    Args:
        observed: the gradient of one image at these weights.
        weights: as the server sent them.
    """
    prefix = _prefix(observed)
    features, code = (_entered(observed, prefix, part) for part in ("encoder", "decoder"))
    if features is None or code is None:
        return {}
    weight, bias = (weights[f"{prefix}encoder.{part}"].to(features) for part in ("weight", "bias"))
    mean, deviation = gaussian((weight @ features + bias)[None])
    return {f"{prefix}noise": ((code - mean) / deviation).float()}


def _prefix(observed: Gradients) -> str:
    ends = f"{NAME}.encoder.weight"
    return next((name.removesuffix("encoder.weight") for name in observed if name.endswith(ends)), "")


def _entered(observed: Gradients, prefix: str, part: str) -> Tensor | None:
    """What entered a linear layer, (d,), of one image; None where the layer was not sent, or more than one image was in."""
    weight, bias = (observed.get(f"{prefix}{part}.{end}") for end in ("weight", "bias"))
    if weight is None or bias is None:
        return None
    weight, bias = weight.double(), bias.double()
    entered = bias @ weight / bias.square().sum().clamp_min(1e-300)
    off = (weight - bias.outer(entered)).norm()
    return entered if bool(bias.any()) and off <= ONE_IMAGE * weight.norm() else None
