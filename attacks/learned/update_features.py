"""A few numbers that say of an update what tells images apart, learnt from pairs of updates of the same images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedveil.attacks.target.problem import Tensors
from fedveil.fl.seeding import torch_stream

HASHED = 16384
"""Entries of an update; more are hashed to so many, with random signs (Weinberger et al. 2009, arXiv 0902.2206)."""

FAR = 5.0
"""Standard deviations beyond which a feature tells no more: where updates are sparse, a single entry may throw it there."""


@dataclass(frozen=True, eq=False)
class UpdateFeatures:
    """Updates along the directions in which those of different images differ most, each of about unit size.

    Attributes:
        mean: (p,) of the entries, hashed where there are many.
        directions: (p, f).
    """

    mean: Tensor
    directions: Tensor

    @classmethod
    def fit(cls, first: Tensor, second: Tensor, most: int) -> UpdateFeatures:
        """Learn from two updates each of n batches, that differ in the defence's noise alone.

        Entries are scaled to unit variance and then shrunk by the share of it that is no noise: Wiener's filter. The rest
        is a principal component analysis of half of the batches. How far updates reach along its directions the other half
        says: the analysis underrates that for updates that it has not seen, where few of their entries differ from 0 most.

        Args:
            first: (n, p), see `entries`.
            second: (n, p) of the same images in the same order.
            most: directions at most; there are no more than half of the batches.
        """
        both = torch.cat([first, second])
        mean, variance = both.mean(dim=0), both.var(dim=0)
        noise = (first - second).square().mean(dim=0) / 2
        # An entry that has never varied says nothing yet, however small the numbers that it is scaled by.
        kept = torch.where(variance > 1e-24, (1 - noise / variance).clamp(0, 1) / variance.sqrt(), 0.0)
        half = len(first) // 2
        known, fresh = (torch.cat([first[part], second[part]]) - mean for part in (slice(half), slice(half, None)))
        directions = kept[:, None] * torch.linalg.svd(known * kept, full_matrices=False)[2][: min(most, half)].T
        reach = (fresh @ directions).std(dim=0)
        return cls(mean, directions / reach.clamp_min(1e-6 * reach.max()))

    def __call__(self, entries: Tensor) -> Tensor:
        """Return (n, f) features of (n, p) entries, within `FAR`."""
        return ((entries - self.mean) @ self.directions).clamp(-FAR, FAR)


def entries(gradients: Tensors) -> Tensor:
    """Return the entries (n, p) of gradients (n, ...) by name, in the order of the names; at most `HASHED` of them."""
    flat = torch.cat([gradients[name].flatten(1) for name in sorted(gradients)], dim=1)
    size = flat.shape[1]
    if size <= HASHED:
        return flat
    stream = torch_stream(0, "hashed entries")
    bucket = torch.randint(HASHED, (size,), generator=stream).to(flat.device)
    sign = (2 * torch.randint(2, (size,), generator=stream) - 1).to(flat)
    return flat.new_zeros((len(flat), HASHED)).index_add(1, bucket, flat * sign)
