"""What a group's image has to match: the group's mean features in all networks of the pool.

Of a client's images nothing else reaches the learning of an image that starts at a public one.
"""

from __future__ import annotations

from torch import Tensor

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
