"""The main defence: k similar images of one client and class share one image, which is learnt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch

from fedveil.defense.base import DEFENSES, Defense, DefenseContext, PreparedDefense, TrainedOn
from fedveil.defense.checks import above_zero, at_least
from fedveil.defense.latent.anchors import group_by_anchor
from fedveil.defense.latent.code import Code
from fedveil.defense.latent.condense import TOGETHER, Matching
from fedveil.defense.latent.game import play
from fedveil.defense.latent.grouping import Grouping, group_by_class
from fedveil.defense.latent.learner import Learner, Networks
from fedveil.defense.latent.pool import Pool, lengths_of, make_pool
from fedveil.defense.latent.shared import Rehearser, Shared, distinct, prepare_shared
from fedveil.defense.latent.targets import Release
from fedveil.defense.public_models import public_autoencoder
from fedveil.fl.cache import State, cached, fingerprint
from fedveil.fl.data.images import Images
from fedveil.fl.errors import SettingError
from fedveil.fl.seeding import derive_seed


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
        grouping: how images are put into groups: by ``mdav``, into groups of k to 2k - 1 of the most similar ones; by
            ``chance``, into groups as large, whose means are less use to the task and point less at their members; or by
            ``anchors``, each to its nearest public image, whoever else is there, into groups of k or more.
        start: where the image begins: at the ``public`` image that is most like the group, or at the group's ``mean``, of
            whose pixels (or latents) it then shows more than its features need.
        strength: how far the learnt image (or its latent) may go from there, in units of the root mean square of the
            start (of its latent); at least 0.
        spread: how far apart the images of a class are made, as a multiple of how far apart the groups' mean features are;
            at least 0. See `fedveil.defense.latent.condense.Matching`.
        dimensions: numbers that an image shows of its group, at least 1; None for all features of the networks. See
            `fedveil.defense.latent.code`.
        steps: of Adam, at least 0.
        learning_rate: of Adam, in grey values from 0 to 1, or in units of the latent's root mean square; above 0.
        utility_weight: weight of the mismatch between the image's features and its group's, above 0.
        privacy_weight: weight of the error that an adversary is left with, at least 0; with 0 there is no game. See
            `fedveil.defense.latent.game`.
        epsilon: of a differentially private release of each group's mean features, above 0; None for no noise. It asks
            for ``grouping: anchors``, ``start: public`` and no game. See `fedveil.defense.latent.targets`.
        delta: beside epsilon, between 0 and 1.
        clip: the longest feature vector of an image in that release, in units of how much public images scatter; above 0.
        random_networks: of the pool, at least 0.
        trained_networks: of the pool, trained on public images; at least 1, since the last one says what is similar.
        public_steps: Adam steps on public images for the autoencoder, at least 1.
    """

    dial: ClassVar[str] = "k"

    k: int = 10
    space: Literal["pixels", "latent"] = "pixels"
    scope: Literal["shared", "client"] = "shared"
    grouping: Literal["mdav", "chance", "anchors"] = "mdav"
    start: Literal["public", "mean"] = "public"
    strength: float = 1.0
    spread: float = 1.6
    dimensions: int | None = None
    steps: int = 200
    learning_rate: float = 0.03
    utility_weight: float = 1.0
    privacy_weight: float = 0.0
    epsilon: float | None = None
    delta: float = 1e-5
    clip: float = 1.0
    random_networks: int = 16
    trained_networks: int = 8
    public_steps: int = 500

    def __post_init__(self) -> None:
        at_least("latent", k=(self.k, 2), steps=(self.steps, 0), strength=(self.strength, 0), spread=(self.spread, 0))
        at_least("latent", random_networks=(self.random_networks, 0), trained_networks=(self.trained_networks, 1))
        at_least("latent", public_steps=(self.public_steps, 1), privacy_weight=(self.privacy_weight, 0))
        above_zero("latent", clip=self.clip, delta=self.delta)
        above_zero("latent", learning_rate=self.learning_rate, utility_weight=self.utility_weight)
        choices: dict[str, tuple[str, ...]] = {"space": ("pixels", "latent"), "scope": ("shared", "client")}
        choices |= {"start": ("public", "mean"), "grouping": ("mdav", "chance", "anchors")}
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                raise SettingError("latent", key, repr(getattr(self, key)), f"allowed: {', '.join(allowed)}")
        if self.dimensions is not None:
            at_least("latent", dimensions=(self.dimensions, 1))
            if self.start != "public":
                raise SettingError(
                    "latent",
                    "start",
                    repr(self.start),
                    "with dimensions only public is allowed: the mean shows all pixels",
                )
        if self.delta >= 1:
            raise SettingError("latent", "delta", self.delta, "it has to be below 1")
        if self.epsilon is not None:
            self._check_release(self.epsilon)

    def _check_release(self, epsilon: float) -> None:
        above_zero("latent", epsilon=epsilon)
        rules = {
            "grouping": ("anchors", "who is grouped with whom must not depend on other private images"),
            "start": ("public", "the mean of the images would be released without noise"),
            "privacy_weight": (0, "the game looks at the images without noise"),
        }
        for key, (allowed, why) in rules.items():
            if getattr(self, key) != allowed:
                raise SettingError(
                    "latent", key, repr(getattr(self, key)), f"with epsilon only {allowed} is allowed: {why}"
                )

    @property
    def hooks(self) -> frozenset[str]:
        """See `Defense.hooks`."""
        return frozenset({"images"})

    @property
    def trained_on(self) -> TrainedOn:
        """All networks are trained on public images; with ``scope: client`` an attacker still has to steal each client's."""
        return TrainedOn.CLIENT if self.scope == "client" else TrainedOn.PUBLIC

    def prepares_in(self, sizes: Sequence[int]) -> int | None:
        """See `Defense.prepares_in`: the pool, and steps of 32 images for each 32 groups."""
        if self.space == "latent" or self.privacy_weight > 0:
            return None
        pools = len(sizes) if self.scope == "client" else 1
        rows = sum(math.ceil(math.ceil(size / self.k) / TOGETHER) for size in sizes)
        return pools * sum(lengths_of(self.trained_networks)) + rows * self.steps // 2

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
        numbers = {} if public.adversary is None else public.adversary.diagnostics()
        if self.release is not None and len(shared.grouping):
            shown = public.shown(private.shape, context.device)
            least = int(shared.grouping.sizes.min())
            numbers |= {"epsilon": self.release.epsilon, "noise": self.release.noise(shown, context.public, least)}
        return prepare_shared(self.name, private, shared, share, similar=similar, numbers=numbers, client=client)

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
        learner = Learner(self.matching, networks, public, device, self.release)
        grouping = self._grouped(networks.pool, public, device, images, stream)
        return Shared(grouping, learner.learn(images, grouping, networks.adversary, None, stream))

    @property
    def release(self) -> Release | None:
        """How the groups' means are released; None where they are matched as they are."""
        return None if self.epsilon is None else Release(self.epsilon, self.delta, self.clip)

    @property
    def matching(self) -> Matching:
        """The settings that learning an image needs."""
        return Matching(
            steps=self.steps,
            learning_rate=self.learning_rate,
            strength=self.strength,
            start=self.start,
            spread=self.spread,
            utility_weight=self.utility_weight,
            privacy_weight=self.privacy_weight,
        )

    def _own_networks(self, context: DefenseContext, client: int) -> Networks:
        return self._networks(replace(context, seed=derive_seed(context.seed, "networks", client)))

    def _networks(self, context: DefenseContext) -> Networks:
        pool = make_pool(context, random=self.random_networks, trained=self.trained_networks)
        autoencoder = public_autoencoder(context, steps=self.public_steps) if self.space == "latent" else None
        code = None if self.dimensions is None else self._code(pool, context)
        networks = Networks(pool, autoencoder, code)
        if self.privacy_weight == 0:
            return networks
        learner = Learner(self.matching, networks, context.public, context.device)
        stream = context.stream("grouping")
        group = partial(self._grouped, pool, context.public, context.device, stream=stream)
        adversary = play(context, self, group, learner.learn, k=self.k)
        return replace(networks, adversary=adversary)

    def _code(self, pool: Pool, context: DefenseContext) -> Code:
        assert self.dimensions is not None
        return Code.fitted(
            pool,
            context.public,
            context.augmentation,
            dimensions=self.dimensions,
            device=context.device,
            stream=context.stream("code"),
        )

    def _grouped(
        self, pool: Pool, public: Images, device: torch.device, images: Images, stream: torch.Generator
    ) -> Grouping:
        if self.grouping == "chance":
            return group_by_class(torch.rand((len(images), 1), generator=stream), images.labels, self.k)
        similar = pool.similar(device)
        if self.grouping == "anchors":
            return group_by_anchor(similar(images), images.labels, self.k, similar(public), public.labels)
        return group_by_class(similar(images), images.labels, self.k)
