"""Deep Leakage from Gradients (Zhu et al. 2019, arXiv 1906.08935)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedveil.attacks.base import ATTACKS
from fedveil.attacks.engine.distances import squared_distance
from fedveil.attacks.matching.attack import Found
from fedveil.attacks.matching.match import Match
from fedveil.attacks.optimizers import LBFGS
from fedveil.attacks.presets.idlg import IDLG
from fedveil.attacks.priors import TotalVariation


@ATTACKS.register("dlg")
@dataclass(frozen=True, kw_only=True)
class DLG(IDLG):
    """Squared distance by L-BFGS from noise, by the images and by their labels: nothing is told.

    It departs from the paper in this: the distance is relative to the update's size; L-BFGS searches along each step and
    keeps pixels in [0, 1]; the labels' logits start at zero instead of noise; several local steps are taken for one. Of
    repeated observations it matches the first. Granted labels are not looked at.

    >>> import fedveil as fv
    >>> fv.DLG(steps=100).told
    False
    """

    name: ClassVar[str] = "dlg"
    told: ClassVar[bool] = False

    def minimise(self, match: Match, start: Tensor) -> Found:
        """See `GradientMatching`."""
        joint = match.joint(distance=squared_distance, priors=[TotalVariation(self.tv)])
        first = joint.pack(start, start.new_zeros((*start.shape[:2], joint.classes)))
        low, high = joint.bounds(first)
        x, losses = LBFGS(self.steps, self.history).minimise(joint, first, low=low, high=high)
        images, logits = joint.unpack(x)
        return Found(images, losses, logits.argmax(dim=2))
