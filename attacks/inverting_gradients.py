"""Inverting Gradients (Geiping et al. 2020, arXiv 2003.14053): cosine distance, total variation, signed Adam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedveil.attacks.base import ATTACKS
from fedveil.attacks.engine import Problem, distance_and_slope
from fedveil.attacks.gradient_matching import GradientMatching
from fedveil.attacks.optimizers import Adam, StepFunction
from fedveil.defense.base import above_zero, at_least


@ATTACKS.register("inverting_gradients")
@dataclass(frozen=True, kw_only=True)
class InvertingGradients(GradientMatching):
    """Match the observed gradient in direction.

    The step size is stated for images in [0, 1]; 0.1 in the paper is for images normalised to unit variance. The start is
    mid-grey with a little noise: normalisation layers hide an image's brightness, and what the start gets wrong there no
    step corrects. Of several restarts, and of all iterates, the one with the lowest own objective is returned.

    Attributes:
        steps: iterations; 24,000 in the paper's experiments on CIFAR-10.
        learning_rate: of signed Adam, in pixel units.
        tv: weight of the total variation, of the mean absolute difference between neighbours.
        restarts: random starts per victim.
        chunk: victims times restarts that are optimised together; bounds memory.
    """

    name: ClassVar[str] = "inverting_gradients"
    steps: int = 300
    learning_rate: float = 0.05
    tv: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self.name, steps=(self.steps, 1), tv=(self.tv, 0))
        above_zero(self.name, learning_rate=self.learning_rate)

    @property
    def optimizer(self) -> Adam:
        """See `GradientMatching`."""
        return Adam(self.steps, self.learning_rate)

    def objective(self, problem: Problem) -> StepFunction:
        """See `GradientMatching`."""
        return distance_and_slope(problem, tv=self.tv)
