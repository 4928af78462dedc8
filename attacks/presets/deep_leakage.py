"""Deep Leakage from Gradients (Zhu et al. 2019, arXiv 1906.08935) with iDLG's labels (Zhao et al. 2020, 2001.02610)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from fedveil.attacks.base import ATTACKS
from fedveil.attacks.engine.distances import Distance, cosine_distance, squared_distance
from fedveil.attacks.matching.attack import Found, GradientMatching, Place
from fedveil.attacks.matching.match import Match
from fedveil.attacks.matching.spectrum import InSpectrum, NaturalSpectrum
from fedveil.attacks.matching.starts import Start
from fedveil.attacks.optimizers import LBFGS
from fedveil.attacks.priors import TotalVariation
from fedveil.attacks.target.smoothness import Suits
from fedveil.defense.checks import at_least, whole


@ATTACKS.register("deep_leakage")
@dataclass(frozen=True, kw_only=True)
class DeepLeakage(GradientMatching):
    """Match the observed gradient entry by entry: squared distance, L-BFGS (after Zhu et al. 2019 and Zhao et al. 2020).

    It departs from the papers in six details. The first half of the steps matches the direction alone (`cosine_distance`):
    where the gradient is far too long or too short at first, squared distance gets stuck. That half searches in a basis in
    which natural images are white (`NaturalSpectrum`), so that of all images that explain the update a likely one is found;
    for batches, whose updates tell less than there are pixels, the other half does, too. Of one image it is by pixels,
    which are kept in [0, 1], with a trace of total variation for those that the gradient leaves open. What several local
    steps sent is matched in direction first, and then by replaying the steps (see `Place`). The distance is relative to the
    observed gradient's size. L-BFGS searches along each of its steps. Labels are the granted ones, or iDLG's; the first
    paper optimises them too.

    >>> import torch, fedveil as fv
    >>> x, y = torch.linspace(0, 1, 256).view(1, 1, 16, 16), torch.tensor([1])
    >>> model = fv.build_model("lenet", image_shape=(1, 16, 16), classes=2)
    >>> update, _ = fv.client_update(model, x, y)
    >>> fv.audit(model, update, images=x, labels=y, attacks=[fv.DeepLeakage(steps=80)]).worst("mse") < 1e-3
    True

    Attributes:
        tv: weight of the total variation while one image is matched by its pixels, at least 0.
        spectrum: weight of the mean square of the variables in the basis of natural images, at least 0. Of several local
            steps on several images it is 100 times as large, which was best on auxiliary images.
        steps: evaluations of the gradient, at least 1; line searches take some of them.
        history: changes, at least 1, from which L-BFGS knows the curvature; 100 in PyTorch's default, which the papers use.
        chunk: victims times restarts that are optimised together, at least 1; L-BFGS keeps 2 * history images for each.
    """

    name: ClassVar[str] = "deep_leakage"
    suits: ClassVar[Suits] = "smooth"
    tv: float = 1e-4
    spectrum: float = 1e-4
    start: Start = "natural"
    place: Place = "unrolled"
    history: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self.name, most=1000, history=(self.history, 1))
        at_least(self.name, spectrum=(self.spectrum, 0))

    def smoothed(self, factor: float) -> Self:
        """The same with ``factor`` times the weights of total variation and spectrum."""
        return replace(super().smoothed(factor), spectrum=factor * self.spectrum)

    @property
    def image_copies(self) -> int:
        """See `GradientMatching`."""
        return LBFGS(self.steps, self.history).image_copies

    def minimise(self, match: Match, start: Tensor) -> Found:
        """See `GradientMatching`."""
        alone, replayed = start.shape[1] == 1, match.warm and match.path is not None
        turning = 0 if replayed else self.steps // 2 if match.sized else self.steps
        found = Found(start, start.new_zeros(len(start)))
        if turning:
            found = self._searched_in_spectrum(match, cosine_distance, found.images, turning)
        if not match.sized:
            return found
        left = self.steps - turning
        if not alone:
            return self._searched_in_spectrum(match, squared_distance, found.images, left)
        last = 0 if replayed else left // 4
        for steps, tv in ((left - last, self.tv), (last, _SHARPER * self.tv)):
            if steps:
                by_pixels = match.objective(distance=squared_distance, priors=[TotalVariation(tv)])
                found = Found(*LBFGS(steps, self.history).minimise(by_pixels, found.images))
        return found

    def _searched_in_spectrum(self, match: Match, distance: Distance, start: Tensor, steps: int) -> Found:
        spectrum = NaturalSpectrum.like(start)
        several = start.shape[1] > 1 and match.observations[0].update.local_steps > 1
        weight = (_SEVERAL if several else 1) * self.spectrum
        objective = InSpectrum(match.objective(distance=distance), spectrum, weight)
        variables = spectrum.variables(start)
        found, losses = LBFGS(steps, self.history).minimise(objective, variables, low=-torch.inf, high=torch.inf)
        return Found(spectrum.images(found).clamp(0, 1), losses)


_SEVERAL = 100
"""So much heavier weighs the spectrum where several images took several steps: such searches end far from a match."""
_SHARPER = 0.01
"""So much of the total variation is left at last for one image, whose gradient tells each pixel."""
