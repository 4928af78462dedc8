"""What an adaptive attacker prepares once, before any update arrives: the surrogate and an inverse of the defence."""

from __future__ import annotations

from dataclasses import dataclass

from attacks.inverse import InverseTraining, train_inverse
from defense.base import Defense, Preparation, Surrogate
from defense.modules import Inverse
from fl.messages import ThreatModel

CODE = ThreatModel(labels=False, public_data=True, defense_algorithm=True)
MODULES = ThreatModel(labels=False, public_data=True, defense_algorithm=True, defense_weights=True)


@dataclass(frozen=True)
class Rehearsal:
    """The attacker's preparation against one prepared defence.

    Attributes:
        surrogate: what the defence had to hand over.
        inverse: from trained-on images to originals; None where the defence leaves images alone.
    """

    surrogate: Surrogate
    inverse: Inverse | None


def rehearse(defense: Defense, granted: ThreatModel, preparation: Preparation, training: InverseTraining) -> Rehearsal:
    """Prepare against ``defense``: the client's prepared one under `MODULES`, the untrained one under `CODE`.

    Args:
        defense: the defence.
        granted: `CODE` or `MODULES`.
        preparation: the attacker's public images, device and seed.
        training: how the inverse is trained.
    """
    surrogate = defense.surrogate(granted, preparation)
    if surrogate.data is None:
        return Rehearsal(surrogate, None)
    inverse = train_inverse(
        preparation.public,
        surrogate.data,
        training,
        device=preparation.device,
        stream=preparation.stream("inverse"),
    )
    return Rehearsal(surrogate, inverse)
