"""Inverting Gradients with a denoiser for its prior, trained on the attacker's own images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedveil.attacks.base import ATTACKS
from fedveil.attacks.matching.attack import Found
from fedveil.attacks.matching.match import Match
from fedveil.attacks.optimizers import Adam
from fedveil.attacks.presets.inverting_gradients import InvertingGradients
from fedveil.attacks.priors import Denoiser, Prior, TotalVariation
from fedveil.attacks.priors.denoiser import train_denoiser
from fedveil.attacks.target.smoothness import Suits
from fedveil.defense.checks import MOST_STEPS, at_least, whole
from fedveil.fl.messages import ThreatModel
from fedveil.fl.seeding import torch_stream


@ATTACKS.register("denoised")
@dataclass(frozen=True, kw_only=True)
class Denoised(InvertingGradients):
    """Cosine distance, and the squared residual of a denoiser (after Romano, Elad and Milanfar 2017, arXiv 1611.02862).

    What looks like noise to a network that has seen the attacker's auxiliary images is held against an image: where updates
    are noisy or clipped, and several images explain them, the likely ones win.

    >>> import fedveil as fv
    >>> fv.Denoised(steps=100).needs.auxiliary_data
    True

    Attributes:
        denoiser: weight of the mean squared residual, at least 0.
        denoiser_steps: for which the denoiser is trained, at least 1.
    """

    name: ClassVar[str] = "denoised"
    needs: ClassVar[ThreatModel] = ThreatModel(labels=False, auxiliary_data=True)
    suits: ClassVar[Suits] = "all"
    one_image: ClassVar[bool] = True
    tv: float = 1e-4
    denoiser: float = 1.0
    denoiser_steps: int = 400

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self.name, denoiser=(self.denoiser, 0))
        whole(self.name, most=MOST_STEPS, denoiser_steps=(self.denoiser_steps, 1))

    def minimise(self, match: Match, start: Tensor) -> Found:
        """See `GradientMatching`."""
        network = train_denoiser(
            match.knowledge.auxiliary_images(),
            steps=self.denoiser_steps,
            noise=0.2,
            device=start.device,
            stream=torch_stream(match.knowledge.seed, "denoiser"),
        )
        priors: list[Prior] = [TotalVariation(self.tv), Denoiser(self.denoiser, network.to(start.device))]
        return Found(*Adam(self.steps, self.learning_rate).minimise(match.objective(priors=priors), start))
