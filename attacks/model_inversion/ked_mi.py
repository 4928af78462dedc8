"""Knowledge-enriched, distributional model inversion: a generator made for one classifier, and a distribution per class."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fedveil.attacks.model_inversion.base import MODEL_INVERSIONS, InversionKnowledge, Inverted, ModelInversion
from fedveil.attacks.model_inversion.gan import Critic, Gan, GanTraining, adversaries
from fedveil.attacks.model_inversion.released import Access, WeightsTarget
from fedveil.defense.checks import MOST_STEPS, above_zero, at_least, whole
from fedveil.defense.devices import on_device
from fedveil.fl.progress import paced
from fedveil.fl.seeding import torch_stream
from fedveil.fl.stepping import Adam


@MODEL_INVERSIONS.register("ked_mi")
@dataclass(frozen=True, kw_only=True)
class KedMi(ModelInversion):
    """An inversion-specific GAN and the recovery of a distribution per class (Chen et al. 2021, arXiv 2010.04092).

    The discriminator has k outputs, like the classifier F. It learns to tell real images by log-sum-exp of them (Salimans et
    al. 2016), and to answer as F does to the attacker's images, whose soft labels F gives. The generator matches the
    discriminator's mean features, and is to be sure of a class (weight ``entropy``). Then mean and variance of the latents
    of each class are learnt: minimise softplus(s) - s + identity * CE(F(G(z)), c) for z = mu_c + sigma_c * n, with s the
    log-sum-exp of the discriminator. Departures: spectral normalisation, and one step of the discriminator per step.

    Attributes:
        gan: how generator and discriminator are trained, for each classifier anew.
        per_class: images drawn from each class's distribution in the end.
        steps: of the recovery.
        draws: latents of each class per step.
        learning_rate: of the recovery (Adam).
        identity: weight of the classifier's cross-entropy.
        entropy: weight of the discriminator's entropy on generated images.
    """

    access: ClassVar[Access] = Access.WEIGHTS

    gan: GanTraining = field(default_factory=GanTraining)
    per_class: int = 16
    steps: int = 300
    draws: int = 8
    learning_rate: float = 0.02
    identity: float = 100.0
    entropy: float = 1e-4

    def __post_init__(self) -> None:
        whole("ked_mi", most=4096, per_class=(self.per_class, 1), draws=(self.draws, 1))
        whole("ked_mi", most=MOST_STEPS, steps=(self.steps, 1))
        above_zero("ked_mi", learning_rate=self.learning_rate)
        at_least("ked_mi", identity=(self.identity, 0), entropy=(self.entropy, 0))

    def run(self, target: WeightsTarget, knowledge: InversionKnowledge) -> Inverted:
        """See `ModelInversion.run`."""
        device = knowledge.device
        stream = torch_stream(knowledge.seed, "model inversion", "ked_mi")
        gan = self._own_gan(target, knowledge, stream)
        generator, critic = on_device(gan.generator, device), on_device(gan.critic, device)
        goals = torch.arange(target.classes).repeat_interleave(self.draws)
        mean = torch.zeros(target.classes, self.gan.latent, device=device, requires_grad=True)
        log_variance = torch.zeros_like(mean, requires_grad=True)
        search = Adam([mean, log_variance], learning_rate=self.learning_rate)

        def drawn(classes: Tensor) -> Tensor:
            noise = torch.randn(len(classes), self.gan.latent, generator=stream).to(device)
            return mean[classes] + (log_variance[classes] / 2).exp() * noise

        for _ in paced(self.steps, "ked_mi"):
            images = generator(drawn(goals))
            score = critic(images).logsumexp(1)
            identity = F.cross_entropy(target.network(images), goals.to(device))
            loss = (F.softplus(score) - score).mean() + self.identity * identity
            search.zero_grad()
            loss.backward()
            search.step()
        wanted = torch.arange(target.classes).repeat_interleave(self.per_class)
        with torch.no_grad():
            return Inverted(generator(drawn(wanted)).cpu(), wanted)

    def _own_gan(self, target: WeightsTarget, knowledge: InversionKnowledge, stream: torch.Generator) -> Gan:
        network = target.network

        def criticise(critic: Critic, real: Tensor, fake: Tensor) -> Tensor:
            on_real, on_fake = critic(real), critic(fake)
            score = on_real.logsumexp(1)
            unlabelled = (F.softplus(score) - score).mean() + F.softplus(on_fake.logsumexp(1)).mean()
            with torch.no_grad():
                told = network(real).softmax(1)
            loss: Tensor = unlabelled + F.cross_entropy(on_real, told)
            return loss

        def generate(critic: Critic, real: Tensor, fake: Tensor) -> Tensor:
            with torch.no_grad():
                seen = critic.features(real).mean(0)
            features = critic.features(fake)
            logits = critic.head(features)
            entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
            loss: Tensor = (features.mean(0) - seen).square().mean() + self.entropy * entropy
            return loss

        return adversaries(
            knowledge.images,
            self.gan,
            outputs=target.classes,
            criticise=criticise,
            generate=generate,
            device=knowledge.device,
            stream=stream,
        )
