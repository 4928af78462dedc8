"""Does an update point the way that a client's training goes? A weight change and a gradient differ in sign."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fedveil.attacks.gradient_matching import target_gradient
from fedveil.attacks.target import TargetModel
from fedveil.fl.messages import ClientUpdate
from fedveil.fl.training import Weights

AGAINST = -0.3
"""Cosine below which an update's gradient is taken to point the other way; what defences leave of one is near 0 or above."""


def points_against(target: TargetModel, update: ClientUpdate, weights: Weights, x: Tensor, y: Tensor) -> bool:
    """Whether the gradient that an update stands for points against the loss's own at the weights that the server sent.

    No attack sees this: it compares with the client's images, to catch a weight change that was passed as a gradient.

    Args:
        target: the classifier.
        update: what was sent.
        weights: what the server had sent.
        x: (B, C, H, W) the client's images, or a guess.
        y: (B,) their labels.
    """
    observed = target_gradient(update)
    device = next(target.module.parameters()).device
    known = target.known(weights)
    held = {name: weight.to(device).detach().requires_grad_(name in observed) for name, weight in known.items()}
    moved = [held[name] for name in observed]
    loss = F.cross_entropy(target.logits(held, x.to(device)), y.to(device))
    gradients = torch.autograd.grad(loss, moved, materialize_grads=True)
    mine = torch.cat([gradient.flatten() for gradient in gradients]).cpu()
    theirs = torch.cat([tensor.flatten() for tensor in observed.values()]).cpu()
    return float(F.cosine_similarity(mine, theirs, dim=0)) < AGAINST
