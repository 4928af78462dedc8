"""From groups of images to the image of each group: what is matched, where it begins, and learning it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedveil.defense.latent.code import Code, CodeReader
from fedveil.defense.latent.condense import Matching, condense, public_starts
from fedveil.defense.latent.game import Adversary, Stake
from fedveil.defense.latent.grouping import Grouping
from fedveil.defense.latent.pool import DEEPEST, Features, Pool, Reads
from fedveil.defense.latent.space import LatentOf, Pixels, Space
from fedveil.defense.latent.targets import Means, Release, group_means, released_means, spread_out
from fedveil.defense.modules import Autoencoder
from fedveil.fl.data.images import Images
from fedveil.fl.sent_once import SentOnce


@dataclass(frozen=True, eq=False)
class Networks(SentOnce):
    """What a shared image is learnt with. No private image has touched it.

    Attributes:
        pool: the networks in which it is like its group.
        autoencoder: whose latent it is learnt in; None where it is learnt as pixels.
        code: the few numbers that it shows of its group; None where all features are matched.
        adversary: that it is learnt against; None for no game.
    """

    pool: Pool
    autoencoder: Autoencoder | None
    code: Code | None = None
    adversary: Adversary | None = None

    def space(self, device: torch.device) -> Space:
        """Return where images are learnt."""
        return Pixels() if self.autoencoder is None else LatentOf(self.autoencoder, device)

    def readers(self, image_shape: tuple[int, int, int], device: torch.device) -> list[Features]:
        """Return the features in which an image is learnt."""
        return self.pool.readers(image_shape, device, DEEPEST if self.code is None else 1)

    def shown(self, image_shape: tuple[int, int, int], device: torch.device) -> Sequence[Reads]:
        """Return what an image shows of its group."""
        readers = self.readers(image_shape, device)
        return readers if self.code is None else [CodeReader(self.code, readers)]

    @property
    def scales(self) -> tuple[tuple[float, ...], ...]:
        """Of all that an image shows of its group, how much public images scatter."""
        return self.pool.scales if self.code is None else ((self.code.scatter,),)


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
        networks, space, public = self.networks, self.networks.space(self.device), self.public
        labels = grouping.labels(images.labels)
        readers = networks.readers(images.shape, self.device)
        shown = networks.shown(images.shape, self.device)
        if self.release is None:
            means = group_means(images, grouping, shown)
        else:
            means = released_means(images, grouping, shown, networks.scales, public, self.release, stream)
        if networks.code is None:
            targets = self._spread(means, labels, shown)
            if self.how.start == "mean":
                starts = grouping.means(space.of(images))
            else:
                judge = networks.pool.reader(images.shape, self.device)
                starts = space.of(public_starts(means[-1][-1], labels, public, judge, allowed))
        else:
            code = networks.code
            codes = spread_out(means[0][0], labels, code.codes, code.views.labels, self.how.spread)
            at = code.starts(codes, labels, allowed)
            targets, starts = code.targets(codes, at, readers), space.of(code.views.take(at))
        return condense(
            targets,
            starts,
            readers,
            [stages[-len(targets[0]) :] for stages in networks.pool.scales],
            self.how,
            space=space,
            stake=None if adversary is None else Stake.of(images, grouping, adversary),
            device=self.device,
            stream=stream,
        )

    def _spread(self, means: Means, labels: Tensor, shown: Sequence[Reads]) -> Means:
        def spread(own: list[Tensor], known: list[Tensor]) -> list[Tensor]:
            stages = zip(own, known, strict=True)
            return [spread_out(mean, labels, stage, self.public.labels, self.how.spread) for mean, stage in stages]

        return [spread(own, reader.of(self.public)) for own, reader in zip(means, shown, strict=True)]
