"""See through Gradients (GradInversion; Yin et al. 2021, arXiv 2104.07586)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedveil.attacks.base import ATTACKS
from fedveil.attacks.engine.distances import squared_distance
from fedveil.attacks.matching.attack import Found, GradientMatching
from fedveil.attacks.matching.match import Match
from fedveil.attacks.matching.starts import Start
from fedveil.attacks.optimizers import Adam
from fedveil.attacks.priors import GroupConsistency, ImageNorm, Prior, TotalVariation
from fedveil.attacks.priors.consistency import groups_of
from fedveil.attacks.priors.statistics import seen_statistics
from fedveil.defense.checks import above_zero, at_least
from fedveil.fl.errors import FedveilError


@ATTACKS.register("gradinversion")
@dataclass(frozen=True, kw_only=True)
class GradInversion(GradientMatching):
    """Squared distance, priors of smoothness, size and BatchNorm statistics, and restarts that have to agree.

    It departs from the paper in this: the distance is relative to the update's size, and so are the weights; the restarts'
    mean is of pixels, without registration; where clients send their BatchNorm buffers, the statistics of the victim's own
    batch take the place of the running ones; labels of batches are counted by whatever fits the update (docs/method.md),
    of which the paper's rule is one.

    >>> import fedveil as fv
    >>> fv.GradInversion(steps=100).restarts
    4

    Attributes:
        restarts: random starts per victim, at least 1, optimised together.
        learning_rate: of Adam, in pixel units, above 0.
        norm: weight of the mean squared distance from mid-grey, at least 0.
        statistics: weight of the BatchNorm statistics, at least 0.
        consistency: weight of the restarts' distance from their mean, at least 0.
        noise: of Langevin dynamics, in units of the learning rate, at least 0.
    """

    name: ClassVar[str] = "gradinversion"
    tv: float = 1e-3
    restarts: int = 4
    start: Start = "noise"
    learning_rate: float = 0.1
    norm: float = 1e-6
    statistics: float = 1e-2
    consistency: float = 1e-2
    noise: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(self.name, learning_rate=self.learning_rate)
        at_least(self.name, norm=(self.norm, 0), statistics=(self.statistics, 0))
        at_least(self.name, consistency=(self.consistency, 0), noise=(self.noise, 0))
        if self.chunk is not None and self.chunk < self.restarts:
            raise FedveilError(
                f"{self.name}: chunk is {self.chunk}; the {self.restarts} restarts of a victim go together"
            )

    def minimise(self, match: Match, start: Tensor) -> Found:
        """See `GradientMatching`."""
        priors: list[Prior] = [TotalVariation(self.tv), ImageNorm(self.norm)]
        priors.append(GroupConsistency(self.consistency, groups_of(match.observations, start.device)))
        seen = seen_statistics(match.problems[0], match.observations, self.statistics)
        priors += [] if seen is None else [seen]
        adam = Adam(self.steps, self.learning_rate, signs="none", noise=self.noise)
        return Found(*adam.minimise(match.objective(distance=squared_distance, priors=priors), start))
