"""What an adaptive attacker prepares once, before any update arrives: the surrogate and an inverse of the defence."""

from __future__ import annotations

from dataclasses import dataclass

from fedveil.attacks.inverse import InverseTraining, train_inverse
from fedveil.defense.base import Defense, DefenseContext, Surrogate
from fedveil.defense.modules import Inverse
from fedveil.fl.messages import ThreatModel

CODE = ThreatModel(labels=False, auxiliary_data=True, defense_algorithm=True)
MODULES = ThreatModel(labels=False, auxiliary_data=True, defense_algorithm=True, defense_modules=True)


@dataclass(frozen=True)
class AttackerPreparation:
    """The attacker's preparation against one prepared defence.

    Attributes:
        surrogate: what the defence had to hand over.
        inverse: from trained-on images to originals; None where the defence leaves images alone.
    """

    surrogate: Surrogate
    inverse: Inverse | None


def prepare_attacker(
    defense: Defense, granted: ThreatModel, preparation: DefenseContext, training: InverseTraining
) -> AttackerPreparation:
    """Prepare against ``defense``: the client's prepared one under `MODULES`, the untrained one under `CODE`.

    Args:
        defense: the defence.
        granted: `CODE` or `MODULES`.
        preparation: the attacker's public images, device and seed.
        training: how the inverse is trained.
    """
    surrogate = defense.surrogate(granted, preparation)
    if surrogate.data is None:
        return AttackerPreparation(surrogate, None)
    inverse = train_inverse(
        preparation.public,
        surrogate.data,
        training,
        device=preparation.device,
        stream=preparation.stream("inverse"),
    )
    return AttackerPreparation(surrogate, inverse)
