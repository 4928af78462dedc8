"""Inverting Gradients (Geiping et al. 2020, arXiv 2003.14053): cosine distance, total variation, signed Adam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedveil.attacks.base import ATTACKS
from fedveil.attacks.gradient_matching import Found, GradientMatching
from fedveil.attacks.match import Match
from fedveil.attacks.optimizers import Adam
from fedveil.attacks.priors import TotalVariation
from fedveil.defense.base import above_zero


@ATTACKS.register("inverting_gradients")
@dataclass(frozen=True, kw_only=True)
class InvertingGradients(GradientMatching):
    """Match the observed gradient in direction.

    The step size is stated for images in [0, 1]; 0.1 in the paper is for images normalised to unit variance. The start is
    mid-grey with a little noise: normalisation layers hide an image's brightness, and what the start gets wrong there no
    step corrects. Of several restarts, and of all iterates, the one with the lowest own objective is returned. The rate
    falls along half a cosine, where the paper divides it by ten three times.

    >>> import fedveil as fv
    >>> fv.InvertingGradients(steps=500, restarts=4)
    InvertingGradients(steps=500, tv=0.01, restarts=4, chunk=None, place='searched', start='grey', learning_rate=0.05)

    Attributes:
        steps: iterations, at least 1; 24,000 in the paper's experiments on CIFAR-10.
        learning_rate: of signed Adam, in pixel units, above 0.
    """

    name: ClassVar[str] = "inverting_gradients"
    learning_rate: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(self.name, learning_rate=self.learning_rate)

    def minimise(self, match: Match, start: Tensor) -> Found:
        """See `GradientMatching`."""
        return Found(
            *Adam(self.steps, self.learning_rate).minimise(match.objective(priors=[TotalVariation(self.tv)]), start)
        )
