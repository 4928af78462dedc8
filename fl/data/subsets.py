"""Choosing among images: a stratified few."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.seeding import torch_stream


def stratified(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw ``count`` indices so that classes keep their shares (largest remainders), each at least one.

    Args:
        labels: (n,) int64.
        count: how many, from the number of classes present to n.
        generator: decides which.

    Returns:
        (count,) int64, ascending.
    """
    present, sizes = torch.unique(labels, return_counts=True)
    quotas = [count * size / len(labels) for size in sizes.tolist()]
    taken = [max(1, math.floor(quota)) for quota in quotas]
    while sum(taken) != count:
        step = 1 if sum(taken) < count else -1
        allowed = [i for i, have in enumerate(taken) if 1 <= have + step <= int(sizes[i])]
        chosen = max(allowed, key=lambda i: step * (quotas[i] - taken[i]))
        taken[chosen] += step
    drawn = [
        _shuffled((labels == label).nonzero()[:, 0], generator)[:number]
        for label, number in zip(present, taken, strict=True)
    ]
    return torch.cat(drawn).sort().values


def limited(images: Images, limit: int, seed: int, split: str) -> Images:
    """Keep at most ``limit`` images, stratified, in their order.

    Raises:
        FedveilError: ``limit`` is below the number of classes.
    """
    if len(images) <= limit:
        return images
    classes = len(set(images.labels.tolist()))
    if limit < classes:
        raise FedveilError(f"data.limit is {limit}; allowed: {classes} and above (one image per class)")
    return images.take(stratified(images.labels, limit, torch_stream(seed, "data", "limit", split)))


def _shuffled(values: Tensor, generator: torch.Generator) -> Tensor:
    return values[torch.randperm(len(values), generator=generator)]
