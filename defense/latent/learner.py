"""From groups of images to the image of each group: what is matched, where it begins, and learning it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedveil.defense.latent.condense import Matching, condense, public_starts
from fedveil.defense.latent.game import Adversary, Stake
from fedveil.defense.latent.grouping import Grouping
from fedveil.defense.latent.pool import Pool
from fedveil.defense.latent.space import LatentOf, Pixels, Space
from fedveil.defense.latent.targets import Release, group_means, released_means
from fedveil.defense.modules import Autoencoder
from fedveil.fl.data.images import Images
from fedveil.fl.sent_once import SentOnce


@dataclass(frozen=True, eq=False)
class Networks(SentOnce):
    """What a shared image is learnt with. No private image has touched it.

    Attributes:
        pool: the networks in which it is like its group.
        autoencoder: whose latent it is learnt in; None where it is learnt as pixels.
        adversary: that it is learnt against; None for no game.
    """

    pool: Pool
    autoencoder: Autoencoder | None
    adversary: Adversary | None = None

    def space(self, device: torch.device) -> Space:
        """Return where images are learnt."""
        return Pixels() if self.autoencoder is None else LatentOf(self.autoencoder, device)


@dataclass(frozen=True, eq=False)
class Learner:
    """Learns groups' images.

    Attributes:
        how: from where, how long, how far.
        networks: that are matched in.
        public: images to start from, which also say where the classes are.
        device: where.
        release: how the groups' means are noised; None for as they are.
    """

    how: Matching
    networks: Networks
    public: Images
    device: torch.device
    release: Release | None = None

    def learn(
        self,
        images: Images,
        grouping: Grouping,
        adversary: Adversary | None,
        allowed: Tensor | None,
        stream: torch.Generator,
    ) -> Tensor:
        """Return the image of each of G groups, (G, C, H, W) uint8.

        Noise aside, it is a function of the group's images and public things alone, to the last bit, and symmetric in these
        images.

        Args:
            images: n, in any order.
            grouping: of these.
            adversary: in the game; None for no game.
            allowed: (G, m) bool, which public images may start which group; None for all.
            stream: draws the noise of each group, and what is drawn the same for all.
        """
        pool, space = self.networks.pool, self.networks.space(self.device)
        labels = grouping.labels(images.labels)
        readers = pool.readers(images.shape, self.device)
        if self.release is None:
            means = group_means(images, grouping, readers)
        else:
            means = released_means(images, grouping, readers, pool.scales, self.public, self.release, stream)
        if self.how.start == "mean":
            starts = grouping.means(space.of(images))
        else:
            judge = pool.reader(images.shape, self.device)
            starts = space.of(public_starts(means[-1][-1], labels, self.public, judge, allowed))
        return condense(
            means,
            labels,
            starts,
            pool,
            self.how,
            self.public,
            space=space,
            stake=None if adversary is None else Stake.of(images, grouping, adversary),
            device=self.device,
            stream=stream,
        )
