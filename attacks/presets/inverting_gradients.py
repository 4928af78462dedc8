"""Inverting Gradients (Geiping et al. 2020, arXiv 2003.14053): cosine distance, total variation, signed Adam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedveil.attacks.base import ATTACKS
from fedveil.attacks.matching.attack import Found, GradientMatching
from fedveil.attacks.matching.match import Match
from fedveil.attacks.optimizers import Adam
from fedveil.attacks.priors import TotalVariation
from fedveil.attacks.target.smoothness import Suits
from fedveil.defense.checks import above_zero


@ATTACKS.register("inverting_gradients")
@dataclass(frozen=True, kw_only=True)
class InvertingGradients(GradientMatching):
    """Match the observed gradient in direction.

    The step size is stated for images in [0, 1]; 0.1 in the paper is for images normalised to unit variance. It is small,
    and the start is mid-grey with a little noise: normalisation layers hide an image's brightness, which large steps of
    equal size carry far off. Rate and total variation were chosen on auxiliary images. Of several restarts, and of all
    iterates, the one with the lowest own objective is returned. The rate falls along half a cosine, where the paper divides
    it by ten three times.

    >>> import fedveil as fv
    >>> attack = fv.InvertingGradients(steps=500, restarts=4)
    >>> attack.tv, attack.learning_rate
    (0.003, 0.03)

    Attributes:
        steps: iterations, at least 1; 24,000 in the paper's experiments on CIFAR-10.
        learning_rate: of signed Adam, in pixel units, above 0.
        opponents: the total variation of colour images lets edges of all colours fall together (see `TotalVariation`).
    """

    name: ClassVar[str] = "inverting_gradients"
    suits: ClassVar[Suits] = "bent"
    one_image: ClassVar[bool] = False
    tv: float = 3e-3
    learning_rate: float = 0.03
    opponents: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(self.name, learning_rate=self.learning_rate)

    def minimise(self, match: Match, start: Tensor) -> Found:
        """See `GradientMatching`."""
        prior = TotalVariation(self.tv, opponents=self.opponents and start.shape[2] == 3)
        return Found(*Adam(self.steps, self.learning_rate).minimise(match.objective(priors=[prior]), start))
