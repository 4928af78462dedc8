"""Generative model inversion with the weights in hand: a search among what a generator of public images can make."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch.nn import functional as F

from fedveil.attacks.model_inversion.base import MODEL_INVERSIONS, InversionKnowledge, Inverted, ModelInversion
from fedveil.attacks.model_inversion.gan import GanTraining
from fedveil.attacks.model_inversion.released import Access, WeightsTarget
from fedveil.defense.checks import MOST_STEPS, above_zero, at_least, whole
from fedveil.defense.devices import on_device
from fedveil.fl.progress import paced
from fedveil.fl.seeding import torch_stream


@MODEL_INVERSIONS.register("gmi")
@dataclass(frozen=True, kw_only=True)
class Gmi(ModelInversion):
    """Momentum descent on a generator's latents (Zhang et al. 2020, arXiv 1911.07135).

    Minimises -D(G(z)) + identity * CE(F(G(z)), c) over z, for each class c, with the generator G and the critic D of the
    attacker's own images (the paper's second stage). Departures: D is no Wasserstein critic, see `gan`; the paper's
    diversity loss, which ties the generator to the classifier, is left out, so that one generator serves for all defences.

    Attributes:
        gan: how generator and critic are trained.
        per_class: images for each class.
        restarts: latents tried for each of them; the one that the classifier is surest of is kept.
        steps: of the descent.
        learning_rate: of the descent.
        momentum: of the descent, at least 0 and below 1.
        identity: weight of the classifier's cross-entropy beside the critic.
        clip: latents stay within so far from 0 in each coordinate.
    """

    access: ClassVar[Access] = Access.WEIGHTS

    gan: GanTraining = field(default_factory=GanTraining)
    per_class: int = 16
    restarts: int = 2
    steps: int = 300
    learning_rate: float = 0.02
    momentum: float = 0.9
    identity: float = 100.0
    clip: float = 1.0

    def __post_init__(self) -> None:
        whole("gmi", most=4096, per_class=(self.per_class, 1), restarts=(self.restarts, 1))
        whole("gmi", most=MOST_STEPS, steps=(self.steps, 1))
        above_zero("gmi", learning_rate=self.learning_rate, clip=self.clip)
        at_least("gmi", momentum=(self.momentum, 0), identity=(self.identity, 0))

    @property
    def prior(self) -> GanTraining:
        """See `ModelInversion.prior`."""
        return self.gan

    def run(self, target: WeightsTarget, knowledge: InversionKnowledge) -> Inverted:
        """See `ModelInversion.run`."""
        gan, device = knowledge.gan(self.gan), knowledge.device
        generator, critic = on_device(gan.generator, device), on_device(gan.critic, device)
        stream = torch_stream(knowledge.seed, "model inversion", "gmi")
        wanted = torch.arange(target.classes).repeat_interleave(self.per_class)
        goals = wanted.repeat(self.restarts).to(device)
        z = torch.randn(len(goals), self.gan.latent, generator=stream).clamp(-self.clip, self.clip).to(device)
        z.requires_grad_(True)
        search = torch.optim.SGD([z], lr=self.learning_rate, momentum=self.momentum)
        for _ in paced(self.steps, "gmi"):
            images = generator(z)
            identity = F.cross_entropy(target.network(images), goals, reduction="none")
            loss = self.identity * identity - critic(images)[:, 0]
            search.zero_grad()
            # Each latent has a loss of its own.
            loss.sum().backward()
            search.step()
            with torch.no_grad():
                z.clamp_(-self.clip, self.clip)
        with torch.no_grad():
            images = generator(z)
            identity = F.cross_entropy(target.network(images), goals, reduction="none").view(self.restarts, -1)
        best = identity.argmin(0)
        kept = images.view(self.restarts, len(wanted), *images.shape[1:])[
            best, torch.arange(len(wanted), device=device)
        ]
        return Inverted(kept.cpu(), wanted)
