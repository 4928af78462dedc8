"""An attacker that does not trust one method: several run under one budget, and each victim gets what fits it best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from fedveil.attacks.base import ATTACKS, Attack, Earlier, Knowledge, Observation
from fedveil.attacks.deep_leakage import DeepLeakage
from fedveil.attacks.gradient_matching import GradientMatching
from fedveil.attacks.inverting_gradients import InvertingGradients
from fedveil.attacks.yardstick import misfit
from fedveil.defense.base import at_least
from fedveil.fl.messages import Reconstruction

CONTENDERS: tuple[GradientMatching, ...] = (InvertingGradients(), DeepLeakage())
HEAT = 8
"""A heat takes this part of the budget for each contender."""


@ATTACKS.register("strongest")
@dataclass(frozen=True, kw_only=True)
class Strongest(Attack):
    """Run several attacks under one budget, and return for each victim what explains its update best.

    One round of successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943): `InvertingGradients` and `DeepLeakage`
    run a heat each; for each victim the one that is behind is dropped, and the other runs anew on what the budget has left.
    The yardstick is the same for all: the client's steps are replayed on the reconstruction, and the cosine distance of
    what it would send to what it sent decides, never the truth. That distance is the loss of the result: where it is large,
    no attack worked.

    >>> import torch, fedveil as fv
    >>> x, y = torch.linspace(0, 1, 256).view(1, 1, 16, 16), torch.tensor([1])
    >>> model = fv.build_model("lenet", image_shape=(1, 16, 16), classes=2)
    >>> update, _ = fv.client_update(model, x, y)
    >>> fv.audit(model, update, images=x, labels=y, attacks=[fv.Strongest(steps=80)]).worst("mse") < 1e-3
    True

    Attributes:
        steps: evaluations of the gradient per victim, of all attacks together; at least 20.
        chunk: victims that are optimised together, at least 1; bounds memory.
    """

    name: ClassVar[str] = "strongest"
    steps: int = 600
    chunk: int = 64

    def __post_init__(self) -> None:
        at_least(self.name, steps=(self.steps, 20), chunk=(self.chunk, 1))

    def run(self, observations: Sequence[Observation], knowledge: Knowledge, earlier: Earlier) -> list[Reconstruction]:
        """See `Attack.run`."""
        # The search for a place takes as many evaluations again.
        budget = self.steps if all(o.update.local_steps == 1 for o in observations) else self.steps // 2
        heat = budget // HEAT
        heats = [self._found(attack, heat, observations, knowledge) for attack in CONTENDERS]
        best = [min(own, key=lambda found: found.loss) for own in zip(*heats, strict=True)]
        for attack, results in zip(CONTENDERS, heats, strict=True):
            ahead = [at for at, found in enumerate(results) if found is best[at]]
            if not ahead:
                continue
            left = budget - len(CONTENDERS) * heat
            again = self._found(attack, left, [observations[at] for at in ahead], knowledge)
            for at, found in zip(ahead, again, strict=True):
                best[at] = min(best[at], found, key=lambda one: one.loss)
        return best

    def _found(
        self, attack: GradientMatching, steps: int, observations: Sequence[Observation], knowledge: Knowledge
    ) -> list[Reconstruction]:
        """What an attack makes of the observations, with losses by the common yardstick."""
        found = replace(attack, steps=steps, chunk=self.chunk).invert(observations, knowledge)
        losses = misfit(observations, found, knowledge)
        return [replace(one, loss=loss) for one, loss in zip(found, losses, strict=True)]
