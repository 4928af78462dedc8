"""Does an update point the way that a client's training goes? A weight change and a gradient differ in sign."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fedveil.attacks.audit.inputs import Updates
from fedveil.attacks.base import Observation
from fedveil.attacks.matching.attack import target_gradient
from fedveil.attacks.target.model import TargetModel
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import ClientUpdate, UpdateKind
from fedveil.fl.training import Weights

AGAINST = -0.3
"""Cosine below which an update's gradient is taken to point the other way; what defences leave of one is near 0 or above."""


def check_directions(
    target: TargetModel, given: Updates, seen: Sequence[Observation], images: Tensor | None
) -> list[str]:
    """Return a note for each update that points the wrong way although the user said its kind.

    Args:
        target: the classifier.
        given: the updates as the user gave them.
        seen: the same, as they were understood; those without labels are not looked at.
        images: (n, C, H, W) the client's, all batches in order; None takes grey ones for them.

    Raises:
        FedveilError: a kind that was guessed is the wrong one.
    """
    notes = []
    said = [isinstance(one, ClientUpdate) for one in (given if isinstance(given, list | tuple) else [given])]
    for at, one in enumerate(seen):
        if one.labels is None:
            continue
        grey = torch.full((one.batch_size, *target.image_shape), 0.5)
        x = grey if images is None else images[at * one.batch_size :][: one.batch_size]
        if not points_against(target, one.update, one.weights, x, one.labels):
            continue
        if len(said) == len(seen) and said[at]:
            notes.append(f"update {at} points against the gradient of the images and labels: is its kind right?")
            continue
        is_gradient = one.update.kind is UpdateKind.GRADIENT
        taken, other = ("a gradient", "delta") if is_gradient else ("a weight change", "gradient")
        raise FedveilError(
            f"update: taken for {taken}, it points the wrong way for these images and labels: pass fv.Update.{other}(...)"
        )
    return notes


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
