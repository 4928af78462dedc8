"""Choosing among images: a stratified few, and the public images that no client gets."""

from __future__ import annotations

import math
from hashlib import blake2b

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


def split_public(images: Images, fraction: float, seed: int) -> tuple[Images, Images]:
    """Cut the public images off the training split, before it is partitioned among clients.

    Without groups each class gives up ``fraction`` of its images. With groups whole groups are moved, as near
    to those numbers as they allow.

    Public images with a pixel-for-pixel twin among the private ones are then left out altogether: an attacker
    would hold a private image. A class of which nothing would be left keeps its first public image, twin or not.

    Args:
        images: the training split.
        fraction: share to make public, between 0 and 1, both excluded.
        seed: decides which images.

    Returns:
        The public and the private images, each in their order; together all images but the twins left out.

    Raises:
        FedveilError: the fraction is out of range, or some class cannot keep an image on both sides.
    """
    if not 0.0 < fraction < 1.0:
        raise FedveilError(f"data.public_fraction is {fraction}; allowed: above 0 and below 1")
    generator = torch_stream(seed, "data", "public")
    if images.groups is None:
        chosen = _single_images(images.labels, fraction, generator)
    else:
        chosen = _whole_groups(images.labels, images.groups, fraction, generator)
    public, private = images.take(chosen.nonzero()[:, 0]), images.take((~chosen).nonzero()[:, 0])
    return public.take(_untwinned(public, private).nonzero()[:, 0]), private


def _untwinned(public: Images, private: Images) -> Tensor:
    """Return a (n,) mask of the public images to keep: no private twin, but at least one of each class."""
    known = set(_digests(private.pixels))
    keep = torch.tensor([digest not in known for digest in _digests(public.pixels)])
    for label in set(public.labels.tolist()) - set(public.labels[keep].tolist()):
        keep[(public.labels == label).nonzero()[0, 0]] = True
    return keep


def _digests(pixels: Tensor) -> list[bytes]:
    """Return a short hash of each image's pixels."""
    return [blake2b(row, digest_size=16).digest() for row in pixels.flatten(1).contiguous().numpy()]


def _single_images(labels: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Return a (n,) mask of public images: the fraction of each class, at least one on either side."""
    public = torch.zeros(len(labels), dtype=torch.bool)
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero()[:, 0]
        if len(members) < 2:
            raise FedveilError(f"data.public_fraction: class {label} has 1 training image; allowed: 2 and more")
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        public[_shuffled(members, generator)[:count]] = True
    return public


def _whole_groups(labels: Tensor, groups: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Return a (n,) mask of public images: greedy, in random order, while that nears the wanted numbers."""
    numbers, group_of = torch.unique(groups, return_inverse=True)
    present, class_of = torch.unique(labels, return_inverse=True)
    contents = torch.zeros(len(numbers), len(present))
    contents.index_put_((group_of, class_of), torch.ones(len(labels)), accumulate=True)
    total = contents.sum(0)
    wanted = fraction * total
    have = torch.zeros_like(total)
    public = torch.zeros(len(numbers), dtype=torch.bool)
    order = _shuffled(torch.arange(len(numbers)), generator).tolist()
    for group in order:
        after = have + contents[group]
        if (after - wanted).abs().sum() < (have - wanted).abs().sum() and bool((after < total).all()):
            have, public[group] = after, True
    # Where the groups are larger than what is wanted of a class, the class is still missing.
    for index in range(len(present)):
        fitting = [group for group in order if contents[group, index] and bool((have + contents[group] < total).all())]
        if not have[index] and fitting:
            group = min(fitting, key=lambda candidate: float(contents[candidate].sum()))
            have, public[group] = have + contents[group], True
        if not have[index]:
            raise FedveilError(
                f"data.public_fraction: class {int(present[index])} has {int(total[index])} training images"
                f" in {int((contents[:, index] > 0).sum())} groups; allowed: enough to keep one on both sides"
            )
    return public[group_of]


def _shuffled(values: Tensor, generator: torch.Generator) -> Tensor:
    return values[torch.randperm(len(values), generator=generator)]
