"""Which reconstruction belongs to which victim: one answer per batch, used by every metric."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fedveil.attacks.scoring.metrics import check_images
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import Reconstruction


def match(reconstructed: Tensor, originals: Tensor) -> Tensor:
    """Return the order in which the reconstructions fit the originals best, one to one.

    The sum of the mean squared errors over the batch is least (Hungarian method). A reconstruction is used
    once, so an attack that rebuilds one victim well and repeats it does not score on the others.

    Args:
        reconstructed: (B, C, H, W) in [0, 1], in any order.
        originals: (B, C, H, W) in [0, 1].

    Returns:
        (B,) int64 permutation on the reconstructions' device; ``reconstructed[order][i]`` belongs to
        ``originals[i]``.

    Raises:
        FedveilError: the batches differ in shape, or are not images in [0, 1].
    """
    check_images("reconstruction", reconstructed)
    check_images("originals", originals)
    if reconstructed.shape != originals.shape:
        raise FedveilError(f"reconstruction: expected {tuple(originals.shape)}, got {tuple(reconstructed.shape)}")
    if len(originals) == 1:
        return torch.zeros(1, dtype=torch.int64, device=reconstructed.device)
    from scipy.optimize import linear_sum_assignment  # takes seconds to load, and most audits have one image per update

    cost = torch.stack([(reconstructed - original).square().flatten(1).mean(1) for original in originals])
    _, order = linear_sum_assignment(cost.cpu().double().numpy())
    return torch.as_tensor(order, dtype=torch.int64, device=reconstructed.device)


def in_order(found: Reconstruction, originals: Tensor, *, attack: str) -> Reconstruction:
    """Return a reconstruction with everything in the originals' order: one matching, by `match`, that every number follows.

    Args:
        found: what the attack returned, in any order.
        originals: (B, C, H, W) in [0, 1].
        attack: its label, for errors.

    Raises:
        FedveilError: a part of it has the wrong shape, or images leave [0, 1] or hold NaN.
    """
    expected = tuple(originals.shape)
    for what, images in (("reconstruction", found.images), ("blind reconstruction", found.blind)):
        if images is None:
            continue
        check_images(f"attack {attack!r}: {what}", images)
        if images.shape != expected:
            raise FedveilError(f"attack {attack!r}: expected {expected}, got {tuple(images.shape)}")
    for what, numbers in (("labels", found.labels), ("classes", found.classes)):
        if numbers is not None and numbers.shape != expected[:1]:
            raise FedveilError(f"attack {attack!r}: expected {expected[:1]} {what}, got {tuple(numbers.shape)}")
    order = match(found.images, originals.to(found.images.device))
    if len(order) == 1:
        return found
    at, likeness = order.cpu(), found.likeness
    return replace(
        found,
        images=found.images[order],
        labels=found.labels.cpu()[at],
        blind=None if found.blind is None else found.blind.cpu()[at],
        classes=None if found.classes is None else found.classes.cpu()[at],
        likeness=None if likeness is None else lambda candidates: likeness(candidates).cpu()[at],
    )
