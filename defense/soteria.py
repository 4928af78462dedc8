"""Soteria: prune what the first fully connected layer tells of the image (Sun et al. 2021, arXiv 2012.06043)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from fedveil.defense.base import DEFENSES, Defense, Gradients, Surrogate
from fedveil.defense.checks import whole
from fedveil.defense.hidden import untouched
from fedveil.fl.errors import FedveilError, SettingError
from fedveil.fl.seeding import torch_stream


@DEFENSES.register("soteria")
@dataclass(frozen=True, kw_only=True)
class Soteria(Defense[None]):
    """Zero the columns of one layer's gradient that belong to the features which tell most of the image.

    The representation r, the input of the first linear layer, is taken to give the image away most by those features r_i
    for which |r_i| / |dr_i / dX| is largest (section 4.2, with L0 and the Euclidean norm); of a batch the mean of that over
    images counts. These features' columns in the layer's weight gradient become 0. The loss, all other gradients and the
    bias's stay as they are: the gradient is masked at its layer, not the forward pass.

    The slopes |dr_i / dX| cost a backward pass for each feature. Unless ``probes`` is 0 they are estimated: the derivatives
    of all features along so many random directions of the image, a forward pass each, have them for a root mean square.
    Directions are the same in each step.

    Attributes:
        prune: share of the features whose columns become 0, at least 0 and below 1.
        layer: name of the linear layer; null takes the model's first. In a model that begins with one, such as ``mlp``, that
            prunes pixels.
        probes: random directions, at least 0; 0 computes the slopes exactly.
    """

    dial: ClassVar[str] = "prune"

    prune: float = 0.8
    layer: str | None = None
    probes: int = 16

    def __post_init__(self) -> None:
        if not 0 <= self.prune < 1:
            raise SettingError("soteria", "prune", self.prune, "it has to be at least 0 and below 1")
        whole("soteria", probes=(self.probes, 0))

    def loss(self, loss: Tensor, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """See `fedveil.fl.hooks.ClientHooks.loss`: the same value, another gradient.

        Raises:
            FedveilError: the model has no linear layer, or none of that name.
        """
        layer = self._layer_of(model)
        if not layer.weight.requires_grad:
            return loss
        with untouched(model):
            told = self.telling(model, layer, x.detach())
        pruned = torch.zeros_like(told).index_fill(
            0, told.argsort(descending=True, stable=True)[: self._count(told)], 1
        )
        (gradient,) = torch.autograd.grad(loss, layer.weight, retain_graph=True, materialize_grads=True)
        taken = (gradient.detach() * pruned * layer.weight).sum()
        return loss - (taken - taken.detach())

    def telling(self, model: nn.Module, layer: nn.Linear, x: Tensor) -> Tensor:
        """Return (D,) how much each input of a layer tells of images (n, C, H, W): the mean of |r_i| / |dr_i / dX|."""
        features, slopes = self._exact(model, layer, x) if not self.probes else self._probed(model, layer, x)
        # A feature that no pixel moves tells nothing.
        return torch.where(slopes > 0, features.abs() / slopes.clamp_min(1e-30), 0).mean(0)

    def _exact(self, model: nn.Module, layer: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_(True)
        with torch.enable_grad(), _inputs_of(layer) as seen:
            model(x)
        features = seen[-1]
        # What one image's features owe to another one, by batch statistics, is left in, as the authors do.
        slopes = [torch.autograd.grad(one.sum(), x, retain_graph=True)[0].flatten(1).norm(dim=1) for one in features.T]
        return features.detach(), torch.stack(slopes, dim=1)

    @torch.no_grad()
    def _probed(self, model: nn.Module, layer: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
        squares: list[Tensor] = []
        features = x
        for number in range(self.probes):
            direction = torch.randn(x.shape, generator=torch_stream(0, "soteria", number)).to(x)
            with forward_ad.dual_level(), _inputs_of(layer) as seen:
                model(forward_ad.make_dual(x, direction))
                features, along = forward_ad.unpack_dual(seen[-1])
                squares.append(along.square())
        return features, torch.stack(squares).mean(0).sqrt()

    def _count(self, features: Tensor) -> int:
        return math.floor(self.prune * len(features) + 1e-9)

    def _layer_of(self, model: nn.Module) -> nn.Linear:
        layers = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
        name = next(iter(layers), None) if self.layer is None else self.layer
        if name not in layers:
            allowed = f"allowed: {', '.join(layers)}" if layers else "it has none"
            raise FedveilError(
                f"soteria: model {type(model).__name__} has no linear layer {name or 'at all'}; {allowed}"
            )
        return layers[name]

    def surrogate(self) -> Surrogate:
        """The attacker leaves out what was masked (Balunovic et al. 2022): all else is as without a defence.

        Columns that hold nothing but zeros were masked, or are of features that are 0 themselves. With fewer of them than
        are pruned, several steps masked different ones, and the layer is left out altogether.
        """

        def visible(observed: Gradients) -> dict[str, Tensor]:
            masks = {name: torch.ones_like(tensor) for name, tensor in observed.items()}
            matrices = (name for name, tensor in observed.items() if tensor.ndim == 2)
            name = next(matrices, None) if self.layer is None else f"{self.layer}.weight"
            if name is not None and name in observed:
                shown = (observed[name] != 0).any(0)
                partly = int((~shown).sum()) < self._count(shown)
                masks[name] = masks[name] * (0.0 if partly else shown)
            return masks

        return Surrogate(visible=visible)


@contextmanager
def _inputs_of(layer: nn.Linear) -> Iterator[list[Tensor]]:
    """Within, what the layer is given is noted, (n, D) each."""
    seen: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0])

    handle = layer.register_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()
