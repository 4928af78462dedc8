"""Which attacks an audit from Python runs, and whether each of them has what it needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedveil.attacks.base import ATTACKS, Attack
from fedveil.defense.base import Defense, PreparedDefense, Stateless, TrainedOn
from fedveil.fl.errors import FedveilError


def chosen_attacks(
    given: Sequence[str | Attack] | None,
    defense: Defense[Any] | PreparedDefense,
    *,
    auxiliary: bool,
    trained_images: bool,
) -> tuple[Attack, ...]:
    """Return the attacks to run, each of which has what it needs.

    Args:
        given: names or attacks; None takes strongest, and the adaptive attack that fits.
        defense: the client's.
        auxiliary: there are images of the attacker's.
        trained_images: what the client trained on is at hand.

    Raises:
        FedveilError: there is no such attack, or one lacks what it needs.
    """
    stolen = isinstance(defense, PreparedDefense) and not isinstance(defense, Stateless)
    if given is None:
        adaptive = ["adaptive_modules" if stolen else "adaptive"]
        given = ["strongest", *(adaptive if auxiliary else [])]
    if isinstance(given, str | Attack):
        given = [given]
    for one in given:
        if not isinstance(one, str | Attack):
            raise FedveilError(
                f"attacks: expected names and attacks such as fv.InvertingGradients(steps=500), got {one!r}"
            )
    attacks = tuple(attack if isinstance(attack, Attack) else ATTACKS[attack]() for attack in given)
    if not attacks:
        raise FedveilError("attacks: at least one is needed")
    for attack in attacks:
        needs = attack.needs
        if needs.auxiliary_data and not auxiliary:
            raise FedveilError(f"attack {attack.name!r} needs images of the attacker: give auxiliary=(images, labels)")
        if needs.trained_images and not trained_images:
            raise FedveilError(f"attack {attack.name!r} needs what the client trained on: give trained_images")
        if stolen and needs.defense_algorithm and not needs.defense_modules:
            raise FedveilError(
                f"attack {attack.name!r} knows no trained modules, and a prepared defence was given: run"
                " 'adaptive_modules', or give the defence's settings"
            )
        if needs.defense_modules and isinstance(defense, Defense) and defense.trained_on is not TrainedOn.NOTHING:
            raise FedveilError(
                f"attack {attack.name!r} holds the client's trained modules: give defense=settings.prepare(...)"
            )
    return attacks
