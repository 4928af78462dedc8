"""The attacker without an update: it guesses the mean image of the class. Every attack has to be read against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedveil.attacks.base import ATTACKS, Attack, Earlier, Knowledge, Observation
from fedveil.attacks.labels import labels_of
from fedveil.attacks.scoring import BASELINE_ATTACK, ClassMeanGuess
from fedveil.fl.messages import Reconstruction, ThreatModel


@ATTACKS.register(BASELINE_ATTACK)
@dataclass(frozen=True, kw_only=True)
class Baseline(Attack):
    """Guess the mean auxiliary image of the class."""

    name: ClassVar[str] = BASELINE_ATTACK
    needs: ClassVar[ThreatModel] = ThreatModel(labels=False, auxiliary_data=True)
    reads_update: ClassVar[bool] = False

    def run(self, observations: Sequence[Observation], knowledge: Knowledge, earlier: Earlier) -> list[Reconstruction]:
        """See `Attack.run`."""
        classes = knowledge.model.classes
        means = ClassMeanGuess.of(knowledge.auxiliary_images(), classes=classes)
        labels = [labels_of(observation, knowledge) for observation in observations]
        return [Reconstruction(means.guess(y), y, float("nan")) for y in labels]
