"""What a group's image has to match: the group's mean features in all networks of the pool, as they are or noised.

Of a client's images nothing else reaches the learning of an image that starts at a public one and plays no game.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedveil.defense.gaussian_mechanism import gaussian_sigma
from fedveil.defense.latent.grouping import Grouping
from fedveil.defense.latent.pool import Features
from fedveil.fl.data.images import Images

Means = list[list[Tensor]]
"""For each network of the pool and each of its stages, the groups' mean features, (G, D)."""


def group_means(images: Images, grouping: Grouping, readers: list[Features]) -> Means:
    """Return the groups' mean features; those of one depend in no bit on others, nor on the order of its images.

    Args:
        images: n.
        grouping: of these.
        readers: of the pool's networks.
    """
    return [[grouping.means(stage) for stage in reader.of(images)] for reader in readers]


@dataclass(frozen=True)
class Release:
    """How group means are released with a guarantee: clipped, then noised by the analytic Gaussian mechanism.

    Attributes:
        epsilon: above 0.
        delta: between 0 and 1.
        clip: the longest feature vector, all networks and stages together, about the class's public mean, in units of how
            much public images scatter in them; above 0.
    """

    epsilon: float
    delta: float
    clip: float

    def radius(self, stages: int) -> float:
        """Return the longest vector, where each of so many stages is measured in units of its own scatter."""
        return self.clip * math.sqrt(stages)

    def sigma(self, stages: int, size: int) -> float:
        """Return the noise of each coordinate of a group's mean: of ``size`` images one may be replaced by any other."""
        return gaussian_sigma(epsilon=self.epsilon, delta=self.delta, sensitivity=2 * self.radius(stages) / size)

    def noise(self, readers: list[Features], public: Images, size: int) -> float:
        """Return the expected length of the noise of a group of ``size`` as a multiple of the longest vector.

        Args:
            readers: of the pool's networks.
            public: at least one image.
            size: images in the group.
        """
        stages = [stage for reader in readers for stage in reader.of(public.take(torch.arange(1)))]
        dimensions = sum(stage.shape[1] for stage in stages)
        return self.sigma(len(stages), size) * math.sqrt(dimensions) / self.radius(len(stages))


def released_means(
    images: Images,
    grouping: Grouping,
    readers: list[Features],
    scales: tuple[tuple[float, ...], ...],
    public: Images,
    how: Release,
    stream: torch.Generator,
) -> Means:
    """Return the groups' mean features as `Release` has it: all stages of all networks are one vector and one release.

    Args:
        images: n.
        grouping: of these.
        readers: of the pool's networks.
        scales: of each network and stage, how much public images scatter (`fedveil.defense.latent.pool.Pool`).
        public: whose class means are what vectors are counted from; of a class without any, the mean of all.
        how: how much.
        stream: draws the noise.
    """
    parts: list[list[Tensor]] = []
    about: list[list[Tensor]] = []
    for reader, own in zip(readers, scales, strict=True):
        centres = [_centres(known, public.labels, images.labels) for known in reader.of(public)]
        read = zip(reader.of(images), centres, own, strict=True)
        parts.append([(stage - centre) / math.sqrt(scale) for stage, centre, scale in read])
        about.append([grouping.means(centre) for centre in centres])
    count = sum(map(len, parts))
    squares = torch.stack([stage.double().square().sum(1) for stages in parts for stage in stages]).sum(0)
    kept = (how.radius(count) / squares.sqrt().clamp_min(1e-12)).clamp(max=1).float()[:, None]
    sigma = torch.tensor([how.sigma(count, size) for size in grouping.sizes.tolist()])[:, None]

    def released(stage: Tensor, centre: Tensor, scale: float) -> Tensor:
        means = grouping.means(kept * stage)
        return centre + math.sqrt(scale) * (means + sigma * torch.randn(means.shape, generator=stream))

    whole = zip(parts, about, scales, strict=True)
    return [[released(*one) for one in zip(stages, centres, own, strict=True)] for stages, centres, own in whole]


def _centres(known: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
    """(n, D): for each of n labels, the mean of public features (m, D) of that class."""
    found = known.mean(0).expand(len(labels), -1).clone()
    for label in labels.unique():
        if bool((classes == label).any()):
            found[labels == label] = known[classes == label].mean(0)
    return found
