"""A search in the latents of a decoder first, then in pixels, after GIAS (Jeon et al. 2021, arXiv 2110.14962)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedveil.attacks.base import ATTACKS
from fedveil.attacks.matching.attack import Found, GradientMatching
from fedveil.attacks.matching.match import Match
from fedveil.attacks.optimizers import LBFGS, Adam
from fedveil.attacks.presets.latent import Latent, train_decoder
from fedveil.attacks.priors import TotalVariation
from fedveil.defense.checks import MOST_STEPS, above_zero, whole
from fedveil.fl.messages import ThreatModel
from fedveil.fl.seeding import torch_stream


@ATTACKS.register("latent_search")
@dataclass(frozen=True, kw_only=True)
class LatentSearch(GradientMatching):
    """Cosine distance, first by the latents of a decoder that has seen the attacker's images, then by the pixels.

    It departs from the paper in this: the generator is the decoder of an autoencoder, trained on the attacker's auxiliary
    images, instead of a GAN; what the decoder can't make is then looked for in pixels, where the paper tunes the generator's
    weights.

    >>> import fedveil as fv
    >>> fv.LatentSearch(steps=100).needs.auxiliary_data
    True

    Attributes:
        learning_rate: of Adam in the latents, whose components have a deviation of about 1, above 0.
        decoder_steps: for which the autoencoder is trained, at least 1.
    """

    name: ClassVar[str] = "latent_search"
    needs: ClassVar[ThreatModel] = ThreatModel(labels=False, auxiliary_data=True)
    tv: float = 1e-3
    learning_rate: float = 0.1
    decoder_steps: int = 400

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(self.name, learning_rate=self.learning_rate)
        whole(self.name, most=MOST_STEPS, decoder_steps=(self.decoder_steps, 1))

    @property
    def image_copies(self) -> int:
        """See `GradientMatching`."""
        return LBFGS(self.steps).image_copies

    def minimise(self, match: Match, start: Tensor) -> Found:
        """See `GradientMatching`."""
        objective = match.objective(priors=[TotalVariation(self.tv)])
        if match.warm:
            return Found(*LBFGS(self.steps).minimise(objective, start))
        auxiliary = match.knowledge.auxiliary_images()
        stream = torch_stream(match.knowledge.seed, "decoder")
        autoencoder = train_decoder(auxiliary, steps=self.decoder_steps, device=start.device, stream=stream)
        autoencoder = autoencoder.to(start.device)
        with torch.no_grad():
            some, _ = auxiliary.batch(torch.arange(min(256, len(auxiliary))))
            latents = autoencoder.encode(some.to(start.device))
        middle, width = latents.mean(dim=0), latents.std().clamp_min(1e-6)
        # In units of the latents' deviation, so that one rate suits all decoders.
        latent = Latent(objective, autoencoder, middle, width)
        z = torch.zeros((*start.shape[:2], *middle.shape), device=start.device)
        first = self.steps // 2
        found, _ = Adam(first, self.learning_rate, signs="none").minimise(latent, z, low=-torch.inf, high=torch.inf)
        return Found(*LBFGS(self.steps - first).minimise(objective, latent.decode(found)))
