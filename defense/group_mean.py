"""A control of the latent perturbation with nothing learnt: similar images share their mean."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from fedveil.defense.base import DEFENSES, Defense, DefenseContext, PreparedDefense, TrainedOn
from fedveil.defense.checks import at_least
from fedveil.defense.latent.condense import to_bytes
from fedveil.defense.latent.grouping import group_by_class
from fedveil.defense.latent.pool import Pool, make_pool
from fedveil.defense.latent.shared import Shared, distinct, prepare_shared
from fedveil.fl.data.images import Images


@DEFENSES.register("group_mean")
@dataclass(frozen=True, kw_only=True)
class GroupMean(Defense[Pool]):
    """At least k similar images of one client and class share their mean.

    Microaggregation (Domingo-Ferrer and Mateo-Sanz 2002); the groups are those of
    `fedveil.defense.latent.defence.LatentPerturbation`.

    >>> from fedveil.defense import GroupMean
    >>> GroupMean(k=5)
    GroupMean(k=5)

    Attributes:
        k: least images of a group, at least 2.
    """

    dial: ClassVar[str] = "k"

    k: int = 10

    def __post_init__(self) -> None:
        at_least("group_mean", k=(self.k, 2))

    @property
    def hooks(self) -> frozenset[str]:
        """See `Defense.hooks`."""
        return frozenset({"images"})

    @property
    def trained_on(self) -> TrainedOn:
        """The network that says what is similar is trained on public images."""
        return TrainedOn.PUBLIC

    def pretrain(self, context: DefenseContext) -> Pool:
        """Train the network that says what is similar."""
        return make_pool(context, random=0, trained=1)

    def prepare(self, private: Images, context: DefenseContext, public: Pool, *, client: int) -> PreparedDefense:
        """Group the client's images.

        Raises:
            FedveilError: no class has k images.
        """
        share = partial(self.share, pool=public, device=context.device)
        private = distinct(private)
        shared = share(private, context.stream("group_mean", client))
        similar = public.similar(context.device)
        return prepare_shared(self.name, private, shared, share, similar=similar, client=client)

    def share(self, images: Images, stream: torch.Generator, *, pool: Pool, device: torch.device) -> Shared:
        """Group any images.

        Args:
            images: n of one holder, all distinct.
            stream: nothing is drawn.
            pool: from `pretrain`.
            device: where.
        """
        (similar,) = pool.reader(images.shape, device).of(images)
        grouping = group_by_class(similar, images.labels, self.k)
        return Shared(grouping, to_bytes(grouping.means(images.floats())))
