"""iDLG (Zhao et al. 2020, arXiv 2001.02610)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedveil.attacks.base import ATTACKS
from fedveil.attacks.engine.distances import squared_distance
from fedveil.attacks.matching.attack import Found, GradientMatching, Place
from fedveil.attacks.matching.match import Match
from fedveil.attacks.matching.starts import Start
from fedveil.attacks.optimizers import LBFGS
from fedveil.attacks.priors import TotalVariation
from fedveil.defense.checks import whole


@ATTACKS.register("idlg")
@dataclass(frozen=True, kw_only=True)
class IDLG(GradientMatching):
    """Squared distance by L-BFGS from noise, with the label that the last layer's gradient gives away.

    It departs from the paper in this: the distance is relative to the update's size; L-BFGS searches along each step and
    keeps pixels in [0, 1]; granted labels are used; batches take recovered ones; several local steps are taken for one.
    `DeepLeakage` is the stronger relative.

    >>> import fedveil as fv
    >>> fv.IDLG(steps=100).tv
    0.0

    Attributes:
        history: changes, at least 1, from which L-BFGS knows the curvature.
    """

    name: ClassVar[str] = "idlg"
    tv: float = 0.0
    place: Place = "sent"
    start: Start = "noise"
    history: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self.name, most=1000, history=(self.history, 1))

    @property
    def image_copies(self) -> int:
        """See `GradientMatching`."""
        return LBFGS(self.steps, self.history).image_copies

    def minimise(self, match: Match, start: Tensor) -> Found:
        """See `GradientMatching`."""
        objective = match.objective(distance=squared_distance, priors=[TotalVariation(self.tv)])
        return Found(*LBFGS(self.steps, self.history).minimise(objective, start))
