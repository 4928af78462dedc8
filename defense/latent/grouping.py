"""Which images share one: groups of at least k similar ones, by microaggregation (k-anonymity).

A group's images are all of one client and class. Groups are formed once and kept: what is computed from a group tells the
images in it apart in nothing, so it may be shown any number of times.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from fedveil.fl.errors import FedveilError


@dataclass(frozen=True, eq=False)
class Grouping:
    """Which group each of n images is in.

    Attributes:
        of: (n,) int64, the number of its group, from 0 without gaps; -1 for an image in none.
        k: no group is smaller.
    """

    of: Tensor
    k: int

    def __post_init__(self) -> None:
        sizes = self.sizes
        if len(sizes) and int(sizes.min()) < self.k:
            raise FedveilError(
                f"grouping: group {int(sizes.argmin())} has {int(sizes.min())} images; at least {self.k}"
            )

    @property
    def sizes(self) -> Tensor:
        """(G,) int64, images per group."""
        return self.of[self.of >= 0].bincount()

    def __len__(self) -> int:
        return len(self.sizes)

    def means(self, values: Tensor) -> Tensor:
        """Return each group's mean, (n, ...) to (G, ...). Neither the order of images nor other groups show in any bit.

        Rows are summed in the order of their digests: a sum in float64 still depends on the order in its last bit.

        Args:
            values: one row per image, on the CPU.
        """
        kept = (self.of >= 0).nonzero()[:, 0]
        found = digests(values[kept])
        kept = kept[torch.tensor(sorted(range(len(kept)), key=found.__getitem__), dtype=torch.int64)]
        rows = values[kept].double().flatten(1)
        sums = torch.zeros(len(self), rows.shape[1], dtype=torch.float64).index_add_(0, self.of[kept], rows)
        means = sums / self.sizes[:, None]
        return means.to(values.dtype).view(-1, *values.shape[1:])

    def labels(self, labels: Tensor) -> Tensor:
        """Return each group's class, (G,), from those of the images, (n,)."""
        kept = self.of >= 0
        return torch.zeros(len(self), dtype=torch.int64).index_copy_(0, self.of[kept], labels[kept])

    def followed_by(self, other: Grouping) -> Grouping:
        """Return both groupings as one, of the images of both, those of ``other`` after its own."""
        behind = torch.where(other.of >= 0, other.of + len(self), -1)
        return Grouping(torch.cat([self.of, behind]), min(self.k, other.k))


def digests(rows: Tensor) -> list[bytes]:
    """Return a hash of each row's bytes, (n, ...) on the CPU."""
    return [blake2b(row, digest_size=16).digest() for row in rows.flatten(1).contiguous().numpy()]


def group_by_class(features: Tensor, labels: Tensor, k: int) -> Grouping:
    """Group images of one class each, the similar ones together; a class with fewer than ``k`` images is in no group.

    Args:
        features: (n, D) in which likeness is Euclidean distance.
        labels: (n,) int64.
        k: least images of a group, at least 1.

    Raises:
        FedveilError: k is below 1.
    """
    if k < 1:
        raise FedveilError(f"k is {k}; it has to be at least 1")
    of = torch.full((len(labels),), -1)
    groups = 0
    for label in labels.unique().tolist():
        own = (labels == label).nonzero()[:, 0]
        if len(own) < k:
            continue
        inner = microaggregate(features[own], k)
        of[own] = inner + groups
        groups += int(inner.max()) + 1
    return Grouping(of, k)


def microaggregate(features: Tensor, k: int) -> Tensor:
    """Return the group, (n,) int64, of each of n points: MDAV, every group of k to 2k - 1 points.

    Domingo-Ferrer and Mateo-Sanz 2002; algorithm MDAV-generic of Domingo-Ferrer and Torra 2005: a group around the point
    that is farthest from the centre of those left, and one around the point farthest from that one, until fewer than 3k
    are left.

    Args:
        features: (n, D), n at least ``k``.
        k: at least 1.

    Raises:
        FedveilError: there are fewer than ``k`` points.
    """
    if len(features) < k:
        raise FedveilError(f"k is {k}, but there are {len(features)} images to group; allowed: at most as many")
    points = features.double().flatten(1)
    of = torch.full((len(points),), -1)
    left = torch.arange(len(points))
    groups = 0

    def take(around: Tensor) -> Tensor:
        """Put the k points nearest to one into a group; return those that are left."""
        nonlocal groups
        distances = (points[left] - around).square().sum(1)
        near = distances.argsort(stable=True)[:k]
        of[left[near]] = groups
        groups += 1
        kept = torch.ones(len(left), dtype=torch.bool)
        kept[near] = False
        return left[kept]

    def farthest(place: Tensor) -> Tensor:
        return points[left[(points[left] - place).square().sum(1).argmax()]]

    while len(left) >= 3 * k:
        first = farthest(points[left].mean(0))
        left = take(first)
        left = take(farthest(first))
    if len(left) >= 2 * k:
        left = take(farthest(points[left].mean(0)))
    of[left] = groups
    return of
