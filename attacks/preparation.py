"""What an adaptive attacker prepares once, before any update arrives: the surrogate and an inverse of the defence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fedveil.attacks.base import Attack, AttackerPreparation
from fedveil.attacks.inverse import InverseTraining, train_inverse
from fedveil.defense.base import Defense, DefenseContext, PreparedDefense, TrainedOn
from fedveil.fl.data.images import Images


@dataclass(frozen=True)
class PreparationKey:
    """Which preparation an attack builds on.

    Attributes:
        modules: the attacker holds the trained modules; otherwise it prepared a copy of the defence for itself.
        client: whose modules; None where all clients share them, or the attacker uses its own.
        training: how the inverse is trained.
    """

    modules: bool
    client: int | None
    training: InverseTraining


def preparation_key(attack: Attack, trained_on: TrainedOn, client: int) -> PreparationKey | None:
    """Return which preparation an attack on a client builds on; None for an attack that knows nothing of the defence."""
    if not attack.needs.defense_algorithm:
        return None
    # An attack from a plug-in may know the defence without an inverse of its own to configure.
    training: InverseTraining = getattr(attack, "inverse", InverseTraining())
    if not attack.needs.defense_modules or trained_on is TrainedOn.NOTHING:
        return PreparationKey(False, None, training)
    return PreparationKey(True, client if trained_on is TrainedOn.CLIENT else None, training)


def shadow_defense(defense: Defense[Any], auxiliary: Images, context: DefenseContext, public: Any) -> PreparedDefense:
    """Return the attacker's own copy of a defence: prepared as a client does, with auxiliary images for private ones.

    Args:
        defense: the settings, which the attacker knows.
        auxiliary: its images.
        context: with a seed of its own.
        public: what the defence learnt on public images; server and clients hold it, so the attacker does.
    """
    return defense.prepare(auxiliary, context, public, client=-1)


def prepare_attacker(
    prepared: PreparedDefense,
    auxiliary: Images,
    training: InverseTraining,
    *,
    device: torch.device,
    stream: torch.Generator,
) -> AttackerPreparation:
    """Prepare against a defence, and train an inverse where it changes images.

    Args:
        prepared: the client's own, or the attacker's copy (`shadow_defense`).
        auxiliary: the attacker's images.
        training: how the inverse is trained.
        device: where.
        stream: the only source of randomness.
    """
    surrogate = prepared.surrogate()
    if surrogate.data is None:
        return AttackerPreparation(surrogate, None)
    inverse = train_inverse(auxiliary, surrogate.data, training, device=device, stream=stream)
    return AttackerPreparation(surrogate, inverse.cpu())
