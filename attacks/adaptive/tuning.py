"""Choosing an attack's weights on other victims: the attacker's own auxiliary images, never the clients'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from fedveil.attacks.adaptive.own_victims import OwnVictim
from fedveil.attacks.base import Knowledge, Observation
from fedveil.attacks.matching.attack import Visible
from fedveil.attacks.scoring import match
from fedveil.defense.base import Surrogate
from fedveil.fl.messages import Reconstruction

FACTORS = (0.1, 1.0, 10.0)
LEAST_BATCHES = 8
"""Own victims that a weight is chosen on."""


@runtime_checkable
class Inversion(Protocol):
    """An attack that inverts updates by matching gradients under a prior of smoothness."""

    def invert(
        self, observations: Sequence[Observation], knowledge: Knowledge, visible: Visible | None = None
    ) -> list[Reconstruction]:
        """Invert all observations, matching only the entries that are ``visible``, if given."""

    def smoothed(self, factor: float) -> Inversion:
        """The same with ``factor`` times the weight of total variation."""


def tuned(inversion: Inversion, own: Sequence[OwnVictim], surrogate: Surrogate, knowledge: Knowledge) -> Inversion:
    """Return the attack with the total-variation weight that inverts defended updates of auxiliary images best.

    A stronger image prior sees through noise on updates, a weaker one keeps detail where there is little of it. Which
    holds is settled by trying `FACTORS` times the weight on updates that the attacker makes itself.

    Args:
        inversion: the attack to tune.
        own: the attacker's own victims; without any, as with fewer auxiliary images than one update has behind it, the
            weight stays as it is.
        surrogate: the defence as the attacker knows it.
        knowledge: as for the clients.
    """
    if not own:
        return inversion
    observations = [one.observation for one in own]
    errors: dict[float, float] = {}
    for factor in FACTORS:
        found = inversion.smoothed(factor).invert(observations, knowledge, surrogate.visible)
        errors[factor] = sum(
            float((f.images[match(f.images, one.trained)] - one.trained).square().mean())
            for f, one in zip(found, own, strict=True)
        )
    return inversion.smoothed(min(errors, key=errors.__getitem__))
