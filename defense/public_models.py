"""Setup 0 of the latent defences, on public images alone: an autoencoder and a reference classifier."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from fedveil.defense.base import DefenseContext
from fedveil.defense.modules import Autoencoder
from fedveil.defense.seeded import seeded
from fedveil.fl.cache import State, cached, fingerprint
from fedveil.fl.data.images import Images
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


def frozen(module: nn.Module) -> nn.Module:
    """Put a module into evaluation mode and stop its gradients."""
    return module.eval().requires_grad_(False)


def train_public_models(context: DefenseContext, *, steps: int) -> PublicModels:
    """Train both modules, each for ``steps`` Adam steps of 64 images, or take them from the context's cache."""
    reference = build_model(context.model)

    def build() -> State:
        return _train_reference(context, steps=steps).state_dict()

    key = ("reference", context.model, *_key(context, steps))
    reference.load_state_dict(cached(context.cache, key, build))
    return PublicModels(public_autoencoder(context, steps=steps), frozen(reference))


def public_autoencoder(context: DefenseContext, *, steps: int) -> Autoencoder:
    """Train the autoencoder alone, or take it from the context's cache; it is frozen and on the CPU."""
    public = context.public
    autoencoder = seeded(lambda: Autoencoder(public.shape), context.stream("blank"))

    def build() -> State:
        stream = context.stream("autoencoder")
        return train_autoencoder(public, steps=steps, device=context.device, stream=stream).state_dict()

    autoencoder.load_state_dict(cached(context.cache, ("autoencoder", *_key(context, steps)), build))
    frozen(autoencoder)
    return autoencoder


def _key(context: DefenseContext, steps: int) -> tuple[object, ...]:
    return (fingerprint(context.public), steps, context.seed, context.device.type)


def train_autoencoder(
    images: Images,
    *,
    steps: int,
    device: torch.device,
    stream: torch.Generator,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
) -> Autoencoder:
    """Train an autoencoder on ``images`` by mean squared error with Adam and a cosine schedule.

    Args:
        images: at least one.
        steps: optimiser steps.
        device: where to train.
        stream: the only source of randomness, the initial weights included.
        batch_size: images per step.
        learning_rate: at the start.

    Returns:
        The autoencoder on the CPU.
    """
    model = seeded(lambda: Autoencoder(images.shape), stream).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    for _ in range(steps):
        x, _ = images.batch(torch.randint(len(images), (batch_size,), generator=stream))
        x = x.to(device)
        optimizer.zero_grad(set_to_none=True)
        F.mse_loss(model(x), x).backward()
        optimizer.step()
        schedule.step()
    return model.cpu()


def _train_reference(context: DefenseContext, *, steps: int, batch_size: int = 64) -> nn.Module:
    public, stream = context.public, context.stream("reference")
    model = seeded(lambda: build_model(context.model), stream).to(context.device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    for _ in range(steps):
        x, y = public.batch(torch.randint(len(public), (batch_size,), generator=stream))
        loss = F.cross_entropy(model(x.to(context.device)), y.to(context.device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.cpu()
