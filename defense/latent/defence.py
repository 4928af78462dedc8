"""The main defence: k similar images of one client and class share one image, which is learnt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch

from fedveil.defense.base import DEFENSES, Defense, DefenseContext, PreparedDefense, TrainedOn, above_zero, at_least
from fedveil.defense.latent.condense import Matching, condense, public_starts
from fedveil.defense.latent.grouping import Grouping, group_by_class
from fedveil.defense.latent.pool import Pool, make_pool
from fedveil.defense.latent.shared import Rehearser, Shared, distinct, prepare_shared
from fedveil.defense.latent.space import LatentOf, Pixels, Space
from fedveil.defense.modules import Autoencoder
from fedveil.defense.public_models import public_autoencoder
from fedveil.fl.cache import State, cached, fingerprint
from fedveil.fl.data.images import Images
from fedveil.fl.errors import SettingError
from fedveil.fl.seeding import derive_seed
from fedveil.fl.sent_once import SentOnce


@dataclass(frozen=True, eq=False)
class Networks(SentOnce):
    """What a shared image is learnt with. No private image has touched it.

    Attributes:
        pool: the networks in which it is like its group.
        autoencoder: whose latent it is learnt in; None where it is learnt as pixels.
    """

    pool: Pool
    autoencoder: Autoencoder | None

    def space(self, device: torch.device) -> Space:
        """Return where images are learnt."""
        return Pixels() if self.autoencoder is None else LatentOf(self.autoencoder, device)


@DEFENSES.register("latent")
@dataclass(frozen=True, kw_only=True)
class LatentPerturbation(Defense[Networks | None]):
    """At least k similar images of one client and class share one learnt image, and the client trains on that alone.

    Microaggregation (Domingo-Ferrer and Mateo-Sanz 2002) by the features of a public network, then dataset condensation by
    distribution matching (Zhao and Bilen 2023) of each group into one image. It is learnt once and kept: nothing averages
    away over rounds, and nothing that is sent tells the images of a group apart. Test images stay untouched.

    Attributes:
        k: least images of a group, at least 2.
        space: where the image is learnt: as ``pixels``, or in the ``latent`` of an autoencoder that is trained on the public
            images, as D(z + delta) from the latent z of its start.
        scope: whose the networks are: ``shared`` by all clients, and known to a server that takes part in the federation, or
            each ``client``'s own, drawn from a secret of its own. Both are trained on the same public images.
        start: where the image begins: at the ``public`` image that is most like the group, or at the group's ``mean``, of
            whose pixels (or latents) it then shows more than its features need.
        strength: how far the learnt image (or its latent) may go from there, in units of the root mean square of the
            start (of its latent); at least 0.
        spread: how far apart the images of a class are made, as a multiple of how far apart the groups' mean features are;
            at least 0. See `fedveil.defense.latent.condense.Matching`.
        steps: of Adam, at least 0.
        learning_rate: of Adam, in grey values from 0 to 1, or in units of the latent's root mean square; above 0.
        random_networks: of the pool, at least 0.
        trained_networks: of the pool, trained on public images; at least 1, since the last one says what is similar.
        public_steps: Adam steps on public images for the autoencoder, at least 1.
    """

    k: int = 10
    space: Literal["pixels", "latent"] = "pixels"
    scope: Literal["shared", "client"] = "shared"
    start: Literal["public", "mean"] = "public"
    strength: float = 1.0
    spread: float = 1.6
    steps: int = 200
    learning_rate: float = 0.03
    random_networks: int = 16
    trained_networks: int = 8
    public_steps: int = 500

    def __post_init__(self) -> None:
        at_least("latent", k=(self.k, 2), steps=(self.steps, 0), strength=(self.strength, 0), spread=(self.spread, 0))
        at_least("latent", random_networks=(self.random_networks, 0), trained_networks=(self.trained_networks, 1))
        above_zero("latent", learning_rate=self.learning_rate)
        at_least("latent", public_steps=(self.public_steps, 1))
        choices = {"space": ("pixels", "latent"), "scope": ("shared", "client"), "start": ("public", "mean")}
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                raise SettingError("latent", key, repr(getattr(self, key)), f"allowed: {', '.join(allowed)}")

    @property
    def trained_on(self) -> TrainedOn:
        """All networks are trained on public images; with ``scope: client`` an attacker still has to steal each client's."""
        return TrainedOn.CLIENT if self.scope == "client" else TrainedOn.PUBLIC

    def pretrain(self, context: DefenseContext) -> Networks | None:
        """Make the networks that all clients share; None where each makes its own."""
        return self._networks(context) if self.scope == "shared" else None

    def prepare(
        self, private: Images, context: DefenseContext, public: Networks | None, *, client: int
    ) -> PreparedDefense:
        """Group the client's images, and learn each group's; with ``scope: client``, make the networks for that first.

        Raises:
            FedveilError: no class has k images.
        """
        private = distinct(private)
        public = public or self._own_networks(context, client)
        share = partial(self.share, networks=public, public=context.public, device=context.device)

        def learn() -> State:
            shared = share(private, context.stream("condense", client))
            return {"of": shared.grouping.of, "images": shared.images}

        key = (repr(self), context.seed, client, fingerprint(private), fingerprint(context.public), context.model)
        found = cached(context.cache, (*key, context.augmentation, context.device.type), learn)
        shared = Shared(Grouping(found["of"], self.k), found["images"])
        similar = public.pool.similar(context.device)
        return prepare_shared(self.name, private, shared, share, similar=similar, client=client)

    def shadow(self, auxiliary: Images, context: DefenseContext, public: Networks | None) -> PreparedDefense:
        """Make networks as a client does, if they are secret; no groups, since the surrogate tells of none."""
        networks = public or self._own_networks(context, -1)
        share = partial(self.share, networks=networks, public=context.public, device=context.device)
        return Rehearser(share, networks.pool.similar(context.device))

    def share(
        self, images: Images, stream: torch.Generator, *, networks: Networks, public: Images, device: torch.device
    ) -> Shared:
        """Group any images, and learn each group's.

        Args:
            images: n of one holder, all distinct.
            stream: draws what is drawn.
            networks: from `pretrain`, or the client's own.
            public: images to start from, which also say where the classes are.
            device: where.
        """
        judge, space = networks.pool.reader(images.shape, device), networks.space(device)
        (similar,) = judge.of(images)
        grouping = group_by_class(similar, images.labels, self.k)
        if self.start == "mean":
            starts = grouping.means(space.of(images))
        else:
            starts = space.of(public_starts(grouping.means(similar), grouping.labels(images.labels), public, judge))
        how = Matching(self.steps, self.learning_rate, self.strength, self.spread)
        learnt = condense(
            images, grouping, starts, networks.pool, how, public, space=space, device=device, stream=stream
        )
        return Shared(grouping, learnt)

    def _own_networks(self, context: DefenseContext, client: int) -> Networks:
        return self._networks(replace(context, seed=derive_seed(context.seed, "networks", client)))

    def _networks(self, context: DefenseContext) -> Networks:
        pool = make_pool(context, random=self.random_networks, trained=self.trained_networks)
        return Networks(pool, public_autoencoder(context, steps=self.public_steps) if self.space == "latent" else None)
