"""The attacker without a gradient: he guesses the public class mean. Every attack has to be read against him."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedveil.attacks.base import ATTACKS, Attack, Knowledge, Observation
from fedveil.attacks.labels import recover_label
from fedveil.attacks.scoring import BASELINE_ATTACK, ClassMeanGuess
from fedveil.fl.messages import Reconstruction, ThreatModel


def labels_of(observation: Observation) -> torch.Tensor:
    """Return the (B,) labels that the attacker uses: those granted, or those he recovers from the update."""
    if observation.labels is not None:
        return observation.labels
    return recover_label(observation.update, batch_size=observation.batch_size)


@ATTACKS.register(BASELINE_ATTACK)
@dataclass(frozen=True, kw_only=True)
class Baseline(Attack):
    """Guess the mean public image of the class."""

    name: ClassVar[str] = BASELINE_ATTACK
    needs: ClassVar[ThreatModel] = ThreatModel(labels=False, auxiliary_data=True)

    def run(
        self,
        observations: Sequence[Observation],
        knowledge: Knowledge,
        earlier: Mapping[str, Sequence[Reconstruction]],
    ) -> list[Reconstruction]:
        """See `Attack.run`."""
        floor = ClassMeanGuess.from_public(knowledge.public_images(), classes=knowledge.model.classes)
        labels = [labels_of(observation) for observation in observations]
        return [Reconstruction(floor.guess(y), y, float("nan")) for y in labels]
