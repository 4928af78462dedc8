"""What an adaptive attacker prepares before any update arrives: a surrogate, an inverse of the defence, a classifier."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedveil.attacks.base import Attack, AttackerPreparation
from fedveil.attacks.inverse.reader import train_reader
from fedveil.attacks.inverse.shared_law import SharedLaw
from fedveil.defense.base import PreparedDefense, Surrogate, TrainedOn
from fedveil.defense.inverse.learnt import InverseTraining, train_inverse
from fedveil.defense.inverse.lessons import (
    DefendedLessons,
    Draws,
    Lessons,
    RehearsedLessons,
    draws_of,
    rehearsed_lessons,
)
from fedveil.fl.data.images import Images
from fedveil.fl.progress import doing


@dataclass(frozen=True)
class PreparationKey:
    """Which preparation an attack builds on.

    Attributes:
        modules: the attacker holds the trained modules, as everyone does if they are public; otherwise it prepared a copy of
            the defence for itself.
        client: whose modules; None where all clients share them, or the attacker uses its own.
        training: how the inverse is trained; None for an attack that has no use for one.
        observations: R, draws of one image that the inverse will be shown, at least 1.
        local_steps: of which each is the mean of so many, at least 1.
    """

    modules: bool
    client: int | None
    training: InverseTraining | None
    observations: int = 1
    local_steps: int = 1


def preparation_key(
    attack: Attack, trained_on: TrainedOn, client: int, *, observations: int = 1, local_steps: int = 1
) -> PreparationKey | None:
    """Return which preparation an attack on a client builds on; None for an attack that knows nothing of the defence."""
    if not attack.needs.defense_algorithm:
        return None
    # An attack from a plug-in may know the defence without an inverse of its own to configure.
    training: InverseTraining | None = getattr(attack, "inverse", InverseTraining())
    # Modules that learnt from public images alone are no secret: attackers of all tiers hold the same, and learn the same.
    modules = trained_on is TrainedOn.PUBLIC or (trained_on is TrainedOn.CLIENT and attack.needs.defense_modules)
    whose = client if modules and trained_on is TrainedOn.CLIENT else None
    return PreparationKey(modules, whose, training, observations, local_steps)


def prepare_attacker(
    prepared: PreparedDefense,
    auxiliary: Images,
    key: PreparationKey,
    *,
    classes: int,
    device: torch.device,
    stream: torch.Generator,
) -> AttackerPreparation:
    """Prepare against a defence: train an inverse where it changes images, and a classifier of what it leaves of them.

    Args:
        prepared: the client's own, or the attacker's copy (`Defense.shadow`).
        auxiliary: the attacker's images. Where all are of one class, there is no classifier.
        key: says for how many draws, and how to train.
        classes: k.
        device: where.
        stream: the only source of randomness.
    """
    surrogate = prepared.surrogate()
    if key.training is None:
        return AttackerPreparation(surrogate, None)
    lessons = _lessons(surrogate, auxiliary, key, key.training.artefacts, device=device, stream=stream)
    inverse = None
    if surrogate.data is not None or surrogate.rehearse is not None:
        with doing("learning to undo the defence"):
            inverse = train_inverse(lessons, key.training, classes=classes, device=device, stream=stream)
    reader = None
    if len(auxiliary.labels.unique()) > 1:
        with doing("learning to read classes"):
            reader = train_reader(lessons, inverse, key.training, classes=classes, device=device, stream=stream)
    law = SharedLaw.of(lessons) if isinstance(lessons, RehearsedLessons) else None
    return AttackerPreparation(surrogate, inverse, reader, law, None if inverse is None else lessons.unlearnt())


def _lessons(
    surrogate: Surrogate,
    auxiliary: Images,
    key: PreparationKey,
    artefacts: float,
    *,
    device: torch.device,
    stream: torch.Generator,
) -> Lessons:
    if surrogate.rehearse is not None:
        return rehearsed_lessons(auxiliary, surrogate.rehearse, artefacts=artefacts, device=device, stream=stream)
    draws = Draws(_untouched, 1, 1, artefacts)
    if surrogate.data is not None:
        draws = draws_of(
            surrogate.data,
            auxiliary,
            artefacts=artefacts,
            observations=key.observations,
            local_steps=key.local_steps,
            device=device,
            stream=stream,
        )
    return DefendedLessons(auxiliary, draws, device=device, stream=stream)


def _untouched(x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
    return x
