"""The main defence: k similar images of one client and class share one image, which is learnt."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from fedveil.defense.base import DEFENSES, Defense, DefenseContext, PreparedDefense, TrainedOn, above_zero, at_least
from fedveil.defense.latent.condense import Matching, condense, public_starts
from fedveil.defense.latent.grouping import Grouping, group_by_class
from fedveil.defense.latent.pool import Pool, make_pool
from fedveil.defense.latent.shared import Shared, distinct, prepare_shared
from fedveil.fl.cache import State, cached, fingerprint
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError


@DEFENSES.register("latent")
@dataclass(frozen=True, kw_only=True)
class LatentPerturbation(Defense[Pool]):
    """At least k similar images of one client and class share one learnt image, and the client trains on that alone.

    Microaggregation (Domingo-Ferrer and Mateo-Sanz 2002) by the features of a public network, then dataset condensation by
    distribution matching (Zhao and Bilen 2023) of each group into one image. It is learnt once and kept: nothing averages
    away over rounds, and nothing that is sent tells the images of a group apart. Test images stay untouched.

    Attributes:
        k: least images of a group, at least 2.
        start: where the image begins: at the ``public`` image that is most like the group, or at the group's ``mean``, of
            whose pixels it then shows more than its features need.
        strength: how far the learnt image may go from there, in units of the start's root mean square; at least 0.
        spread: how far apart the images of a class are made, as a multiple of how far apart the groups' mean features are;
            at least 0. See `fedveil.defense.latent.condense.Matching`.
        steps: of Adam, at least 0.
        learning_rate: of Adam, in grey values from 0 to 1; above 0.
        random_networks: of the pool, at least 0.
        trained_networks: of the pool, trained on public images; at least 1, since the last one says what is similar.
    """

    k: int = 10
    start: Literal["public", "mean"] = "public"
    strength: float = 1.0
    spread: float = 1.6
    steps: int = 200
    learning_rate: float = 0.03
    random_networks: int = 16
    trained_networks: int = 8

    def __post_init__(self) -> None:
        at_least("latent", k=(self.k, 2), steps=(self.steps, 0), strength=(self.strength, 0), spread=(self.spread, 0))
        at_least("latent", random_networks=(self.random_networks, 0), trained_networks=(self.trained_networks, 1))
        above_zero("latent", learning_rate=self.learning_rate)
        if self.start not in ("public", "mean"):
            raise FedveilError(f"latent: start is {self.start!r}; allowed: public, mean")

    @property
    def trained_on(self) -> TrainedOn:
        """The networks are trained on public images; the groups' images are what is sent, not what is held."""
        return TrainedOn.PUBLIC

    def pretrain(self, context: DefenseContext) -> Pool:
        """Make the pool of networks."""
        return make_pool(context, random=self.random_networks, trained=self.trained_networks)

    def prepare(self, private: Images, context: DefenseContext, public: Pool, *, client: int) -> PreparedDefense:
        """Group the client's images, and learn each group's.

        Raises:
            FedveilError: no class has k images.
        """
        private = distinct(private)
        share = partial(self.share, pool=public, public=context.public, device=context.device)

        def learn() -> State:
            shared = share(private, context.stream("condense", client))
            return {"of": shared.grouping.of, "images": shared.images}

        key = (repr(self), context.seed, client, fingerprint(private), fingerprint(context.public), context.model)
        found = cached(context.cache, (*key, context.augmentation, context.device.type), learn)
        shared = Shared(Grouping(found["of"], self.k), found["images"])
        return prepare_shared(self.name, private, shared, share, client=client)

    def share(
        self, images: Images, stream: torch.Generator, *, pool: Pool, public: Images, device: torch.device
    ) -> Shared:
        """Group any images, and learn each group's.

        Args:
            images: n of one holder, all distinct.
            stream: draws what is drawn.
            pool: from `pretrain`.
            public: images to start from, which also say where the classes are.
            device: where.
        """
        judge = pool.reader(images.shape, device)
        similar = judge.of(images)[0]
        grouping = group_by_class(similar, images.labels, self.k)
        if self.start == "mean":
            starts = grouping.means(images.floats())
        else:
            starts = public_starts(grouping.means(similar), grouping.labels(images.labels), public, judge)
        how = Matching(self.steps, self.learning_rate, self.strength, self.spread)
        return Shared(grouping, condense(images, grouping, starts, pool, how, public, device=device, stream=stream))
