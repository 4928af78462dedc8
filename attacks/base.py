"""The `Attack` interface: what an attacker observes, what it is granted beside that, and the refusal to hand over more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fedveil.attacks.inverse.reader import Reader
from fedveil.attacks.inverse.shared_law import SharedLaw
from fedveil.attacks.target.model import TargetModel
from fedveil.defense.base import Surrogate
from fedveil.defense.inverse.learnt import LearntInverse
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import ClientUpdate, Reconstruction, ThreatModel
from fedveil.fl.registry import Registry
from fedveil.fl.training import Weights

ATTACKS: Registry[type[Attack]] = Registry("attack")


@dataclass(frozen=True, eq=False)
class Observation:
    """One victim batch as the server sees it.

    >>> import torch, fedveil as fv
    >>> update = fv.Update.gradient({"weight": torch.ones(2)})
    >>> fv.Observation(number=0, client=3, update=update, weights={"weight": torch.zeros(2)}, batch_size=1).labels is None
    True

    Attributes:
        number: of the batch; the attacker's random starts are keyed by it.
        client: who sent the update.
        update: what was sent.
        weights: what the server had sent before (see `fedveil.fl.training.exchanged`); observations of one round share it.
        batch_size: B, images behind the update.
        labels: (B,) the true labels, only where the threat model grants them.
        trained_images: (B, C, H, W), only where the threat model grants them.
        shares: (B, K) of the classes, what an attacker that reckons with a defence takes for the labels that were trained
            on, row by row those of the images that it looks for; no audit hands it over. None where labels are whole.
        repeats: what the same client sent of the same batch in other rounds, with weights of their own and noise drawn
            afresh; none where the batch was seen once. Labels are those of the first observation.
    """

    number: int
    client: int
    update: ClientUpdate
    weights: Weights
    batch_size: int
    labels: Tensor | None = None
    trained_images: Tensor | None = None
    shares: Tensor | None = None
    repeats: tuple[Observation, ...] = ()

    @property
    def series(self) -> tuple[Observation, ...]:
        """Every observation of the batch, this one first."""
        return (self, *self.repeats)


@dataclass(frozen=True)
class AttackerPreparation:
    """The attacker's preparation against one prepared defence.

    Attributes:
        surrogate: what the defence had to hand over.
        inverse: from trained-on images to originals, on the CPU; None where the defence leaves images alone.
        reader: the attacker's own classifier of trained-on images, on the CPU; None if it has none.
        law: how likely an image had a part in what was trained on, for a defence that makes one image of many; else None.
        unlearnt: auxiliary images of which the inverse has learnt nothing, and for each what a client would hold in its
            place: the image itself, or what became of it behind a defence that makes one image of many. None without an
            inverse: then nothing was learnt of any.
    """

    surrogate: Surrogate
    inverse: LearntInverse | None
    reader: Reader | None = None
    law: SharedLaw | None = None
    unlearnt: tuple[Images, Images] | None = None

    @property
    def draws(self) -> int:
        """How many draws of one image the inverse looks at; 1 where all that was observed of an image is the same."""
        return 1 if self.inverse is None else self.inverse.observations


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What the attacker holds for all victims alike.

    >>> import torch, fedveil as fv
    >>> from fedveil.attacks.target.model import target_model
    >>> lenet = fv.build_model("lenet", image_shape=(1, 16, 16), classes=3)
    >>> target = target_model(lenet, image_shape=(1, 16, 16), classes=3)
    >>> fv.Knowledge(fv.ThreatModel(), target, torch.device("cpu"), seed=0).model.classes
    3

    Attributes:
        threat_model: what it is granted.
        model: the classifier's code, fit for attacks, and how the clients ran it.
        device: where to compute.
        seed: of the attacker's own randomness.
        auxiliary: images that belong to no client, where granted.
        preparations: what it prepared against the defence, where granted: by client, under None for all others.
    """

    threat_model: ThreatModel
    model: TargetModel
    device: torch.device
    seed: int
    auxiliary: Images | None = None
    preparations: Mapping[int | None, AttackerPreparation] = field(default_factory=dict)

    def preparation(self, client: int) -> AttackerPreparation:
        """Return the preparation against a client's defence.

        Raises:
            FedveilError: there is none.
        """
        found = self.preparations.get(client, self.preparations.get(None))
        if found is None:
            raise FedveilError(f"nothing is prepared against the defence of client {client}; see attacks.preparation")
        return found

    def auxiliary_images(self) -> Images:
        """Return the auxiliary images.

        Raises:
            FedveilError: the threat model grants none.
        """
        if self.auxiliary is None:
            raise FedveilError("the threat model grants no auxiliary images (auxiliary_data)")
        return self.auxiliary


Earlier = Mapping["Attack", Sequence[Reconstruction]]
"""What other attacks made of the same observations, by attack with its settings."""


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """An attack with its hyperparameters; `repr` shows exactly these.

    >>> import fedveil as fv
    >>> attack = fv.InvertingGradients(steps=100)
    >>> attack.name, attack.needs.auxiliary_data, attack.adaptive
    ('inverting_gradients', False, False)
    """

    name: ClassVar[str]
    needs: ClassVar[ThreatModel] = ThreatModel(labels=False)
    """The grants without which the attack can't run (labels excepted: they are given or recovered)."""
    adaptive: ClassVar[bool] = False
    """It reckons with the defence; an audit without such an attack is marked incomplete."""
    reads_update: ClassVar[bool] = True
    """Its images come from the update. One that is False only shows what it was told, so no class is read from them."""

    explains_update: ClassVar[bool] = False
    """Its images are those that the client trained on, so that they explain the update if the attack has worked."""

    def applies(self, knowledge: Knowledge) -> bool:
        """Whether the attack says anything about a defence against which the attacker has prepared as in ``knowledge``."""
        return True

    def __call__(
        self, observations: Sequence[Observation], knowledge: Knowledge, *, earlier: Earlier | None = None
    ) -> list[Reconstruction]:
        """Attack a batch of victims at once.

        Args:
            observations: victims whose batches have one size and whose updates are of one kind.
            knowledge: what the attacker holds.
            earlier: results of other attacks on the same observations, that this one may build on.

        Raises:
            FedveilError: the attack needs more than the threat model grants, is handed more, or returns something else than
                a reconstruction of each update.
        """
        lacking = knowledge.threat_model.lacks(self.needs)
        if lacking:
            raise FedveilError(
                f"attack {self.name!r} needs {', '.join(lacking)}, which the threat model does not grant"
            )
        _refuse_excess(observations, knowledge)
        found = self.run(observations, knowledge, earlier or {})
        if not isinstance(found, list | tuple) or not all(isinstance(one, Reconstruction) for one in found):
            raise FedveilError(f"attack {self.name!r}: run() has to return a list of Reconstruction, got {found!r:.80}")
        if len(found) != len(observations):
            raise FedveilError(f"attack {self.name!r}: {len(found)} reconstructions of {len(observations)} updates")
        return list(found)

    @abstractmethod
    def run(self, observations: Sequence[Observation], knowledge: Knowledge, earlier: Earlier) -> list[Reconstruction]:
        """Do the attack; see `__call__`, which has checked the grants."""


def attack_labels(attacks: Sequence[Attack]) -> list[str]:
    """Return a label for each attack: its name, with a number from the second of that name on.

    >>> from fedveil.attacks import InvertingGradients
    >>> attack_labels([InvertingGradients(steps=10), InvertingGradients(steps=20)])
    ['inverting_gradients', 'inverting_gradients_2']
    """
    return numbered([attack.name for attack in attacks])


def numbered(names: Sequence[str]) -> list[str]:
    """Return the names, with a number from the second of one name on.

    >>> numbered(["gmi", "ked_mi", "gmi"])
    ['gmi', 'ked_mi', 'gmi_2']
    """
    seen: Counter[str] = Counter()
    labels = []
    for name in names:
        seen[name] += 1
        labels.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return labels


def _refuse_excess(observations: Sequence[Observation], knowledge: Knowledge) -> None:
    held = [
        ("the attacker", "auxiliary_data", knowledge.auxiliary is not None),
        ("the attacker", "defense_algorithm", bool(knowledge.preparations)),
    ]
    for observation in (one for first in observations for one in first.series):
        holder = f"the observation of client {observation.client}"
        held.append((holder, "labels", observation.labels is not None))
        held.append((holder, "trained_images", observation.trained_images is not None))
    for holder, grant, holds in held:
        if holds and not getattr(knowledge.threat_model, grant):
            raise FedveilError(f"{holder} holds {grant}, which is not granted")
