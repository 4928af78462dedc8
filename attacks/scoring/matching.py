"""Which reconstruction belongs to which victim: one answer per batch, used by every metric."""

from __future__ import annotations

import torch
from torch import Tensor

from fedveil.attacks.scoring.metrics import check_images
from fedveil.fl.errors import FedveilError


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
