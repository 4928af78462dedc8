"""The plain training loop of every module that learns from public images: Adam under a cosine schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from fedveil.defense.seeded import seeded
from fedveil.fl.data.images import Images
from fedveil.fl.progress import paced
from fedveil.fl.stepping import Adam, half_cosine

Module = TypeVar("Module", bound=nn.Module)


def frozen(module: Module) -> Module:
    """Put a module into evaluation mode, stop its gradients, and return it."""
    return module.eval().requires_grad_(False)


def fit(
    build: Callable[[], Module],
    images: Images,
    loss: Callable[[Module, Tensor, Tensor], Tensor],
    *,
    steps: int,
    device: torch.device,
    stream: torch.Generator,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    after_step: Callable[[], None] | None = None,
) -> Module:
    """Build a module and minimise ``loss(module, x, y)`` over batches that are drawn with replacement.

    Args:
        build: makes the module; its initial weights are drawn from ``stream`` too.
        images: at least one.
        loss: of x (b, C, H, W) in [0, 1] and labels y (b,), both on ``device``; a scalar.
        steps: optimiser steps.
        device: where to train.
        stream: the only source of randomness.
        batch_size: images per step.
        learning_rate: at the start; it falls to 0 along half a cosine.
        after_step: is called after each, and has to say how far it is; None leaves that to this function.

    Returns:
        The module on the CPU, frozen.
    """
    module = seeded(build, stream).to(device).train()
    optimizer = Adam(module.parameters(), learning_rate=learning_rate)
    for step in range(steps) if after_step else paced(steps, "learning from public images"):
        x, y = images.batch(torch.randint(len(images), (batch_size,), generator=stream))
        optimizer.zero_grad()
        loss(module, x.to(device), y.to(device)).backward()
        optimizer.step(half_cosine(step, steps))
        if after_step is not None:
            after_step()
    return frozen(module.cpu())
