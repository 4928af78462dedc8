"""What the latent defences pretrain on public images alone: an autoencoder and a reference classifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from fedveil.defense.base import DefenseContext
from fedveil.defense.fitting import Module, fit, frozen
from fedveil.defense.modules import Autoencoder
from fedveil.defense.seeded import seeded
from fedveil.fl.cache import State, cached, fingerprint
from fedveil.fl.models import build_model


@dataclass(frozen=True, eq=False)
class PublicModels:
    """What all clients start from. Nothing private has touched it.

    Attributes:
        autoencoder: trained by mean squared error.
        reference: the federation's own kind of classifier, trained on untouched public images.
    """

    autoencoder: Autoencoder
    reference: nn.Module


def train_public_models(context: DefenseContext, *, steps: int) -> PublicModels:
    """Train both modules, each for ``steps`` Adam steps of 64 images, or take them from the context's cache."""

    def build() -> nn.Module:
        return build_model(context.model)

    def loss(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(module(x), y)

    reference = _trained(context, ("reference", context.model), build, loss, steps)
    return PublicModels(public_autoencoder(context, steps=steps), reference)


def public_autoencoder(context: DefenseContext, *, steps: int) -> Autoencoder:
    """Train the autoencoder alone, or take it from the context's cache; it is frozen and on the CPU."""

    def build() -> Autoencoder:
        return Autoencoder(context.public.shape)

    def loss(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(module(x), x)

    return _trained(context, ("autoencoder",), build, loss, steps)


def _trained(
    context: DefenseContext,
    key: tuple[object, ...],
    build: Callable[[], Module],
    loss: Callable[[Module, Tensor, Tensor], Tensor],
    steps: int,
) -> Module:
    def train() -> State:
        stream = context.stream(str(key[0]))
        return fit(build, context.public, loss, steps=steps, device=context.device, stream=stream).state_dict()

    module = seeded(build, context.stream("blank"))
    whole = (*key, fingerprint(context.public), steps, context.seed, context.device.type)
    module.load_state_dict(cached(context.cache, whole, train))
    return frozen(module)
