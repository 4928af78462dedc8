"""Deep Leakage from Gradients (Zhu et al. 2019, arXiv 1906.08935) with iDLG's labels (Zhao et al. 2020, 2001.02610)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedveil.attacks.base import ATTACKS
from fedveil.attacks.engine.distances import squared_distance
from fedveil.attacks.matching.attack import Found, GradientMatching, Place
from fedveil.attacks.matching.match import Match
from fedveil.attacks.optimizers import LBFGS
from fedveil.attacks.priors import TotalVariation
from fedveil.attacks.target.smoothness import Suits
from fedveil.defense.base import whole


@ATTACKS.register("deep_leakage")
@dataclass(frozen=True, kw_only=True)
class DeepLeakage(GradientMatching):
    """Match the observed gradient entry by entry: squared distance, L-BFGS (after Zhu et al. 2019 and Zhao et al. 2020).

    It departs from the papers in five details. The first half of the steps matches the direction alone (`cosine_distance`):
    where the gradient is far too long or too short at first, squared distance gets stuck. What several local steps sent is
    matched in direction first, and then by replaying the steps (see `Place`). The distance is relative to the observed
    gradient's size. L-BFGS searches along each of its steps and keeps pixels in [0, 1]. The start is mid-grey with a little
    noise. A trace of total variation settles pixels that the gradient leaves open, more of it in a batch. Labels are the
    granted ones, or iDLG's; the first paper optimises them too.

    >>> import torch, fedveil as fv
    >>> x, y = torch.linspace(0, 1, 256).view(1, 1, 16, 16), torch.tensor([1])
    >>> model = fv.build_model("lenet", image_shape=(1, 16, 16), classes=2)
    >>> update, _ = fv.client_update(model, x, y)
    >>> fv.audit(model, update, images=x, labels=y, attacks=[fv.DeepLeakage(steps=80)]).worst("mse") < 1e-3
    True

    Attributes:
        tv: weight of the total variation for one image, at least 0. Of a batch of B images an update tells less, and the
            weight is B * B times as large: so much was best on auxiliary images for B = 4 and 8.
        steps: evaluations of the gradient, at least 1; line searches take some of them.
        history: changes, at least 1, from which L-BFGS knows the curvature; 100 in PyTorch's default, which the papers use.
        chunk: victims times restarts that are optimised together, at least 1; L-BFGS keeps 2 * history images for each.
    """

    name: ClassVar[str] = "deep_leakage"
    suits: ClassVar[Suits] = "smooth"
    tv: float = 1e-4
    place: Place = "unrolled"
    history: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self.name, most=1000, history=(self.history, 1))

    @property
    def image_copies(self) -> int:
        """See `GradientMatching`."""
        return LBFGS(self.steps, self.history).image_copies

    def minimise(self, match: Match, start: Tensor) -> Found:
        """See `GradientMatching`."""
        tv = self.tv * start.shape[1] ** 2
        squared = match.objective(distance=squared_distance, priors=[TotalVariation(tv)])
        if match.warm and match.path is not None:
            return Found(*LBFGS(self.steps, self.history).minimise(squared, start))
        turn = match.objective(priors=[TotalVariation(_SMOOTHER * tv)])
        if not match.sized:
            return Found(*LBFGS(self.steps, self.history).minimise(turn, start))
        first = self.steps // 2
        last = (self.steps - first) // 4 if start.shape[1] == 1 else 0
        images = LBFGS(first, self.history).minimise(turn, start)[0] if first else start
        found = LBFGS(self.steps - first - last, self.history).minimise(squared, images)
        if last == 0:
            return Found(*found)
        sharp = match.objective(distance=squared_distance, priors=[TotalVariation(_SHARPER * tv)])
        return Found(*LBFGS(last, self.history).minimise(sharp, found[0]))


_SMOOTHER = 10
"""So much stronger is the total variation while the direction is matched: the cosine tells little of smooth shades."""
_SHARPER = 0.01
"""So much of the total variation is left at last for one image, whose gradient tells each pixel."""
