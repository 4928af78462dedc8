"""The `Attack` interface: what an attacker observes, what he is granted beside it, and the refusal to hand over more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from attacks.rehearsal import Rehearsal
from fl.data.images import Images
from fl.errors import FedveilError
from fl.messages import ClientUpdate, Reconstruction, ThreatModel
from fl.models import ModelSpec
from fl.registry import Registry
from fl.training import Weights

if TYPE_CHECKING:
    from attacks.inverting_gradients import InvertingGradients

ATTACKS: Registry[type[Attack]] = Registry("attack")


@dataclass(frozen=True)
class Observation:
    """One victim batch as the server sees it.

    Attributes:
        number: of the batch; the attacker's random starts are keyed by it.
        client: who sent the update.
        update: what was sent.
        weights: what the server had sent before (see `fl.training.exchanged`).
        batch_size: B, images behind the update.
        labels: (B,) the true labels, only where the threat model grants them.
        trained_images: (B, C, H, W), only where the threat model grants them.
    """

    number: int
    client: int
    update: ClientUpdate
    weights: Weights
    batch_size: int
    labels: Tensor | None = None
    trained_images: Tensor | None = None


@dataclass(frozen=True)
class Knowledge:
    """What the attacker holds for all victims alike.

    Attributes:
        threat_model: what he is granted.
        model: the classifier's code.
        device: where to compute.
        seed: of the attacker's own randomness.
        public: images that belong to no client, where granted.
        rehearsals: what he prepared against the defence, where granted: by client, under None for all others.
    """

    threat_model: ThreatModel
    model: ModelSpec
    device: torch.device
    seed: int
    public: Images | None = None
    rehearsals: Mapping[int | None, Rehearsal] = field(default_factory=dict)

    def rehearsal(self, client: int) -> Rehearsal:
        """Return the preparation against a client's defence.

        Raises:
            FedveilError: there is none.
        """
        found = self.rehearsals.get(client, self.rehearsals.get(None))
        if found is None:
            raise FedveilError(f"no rehearsal against the defence of client {client}; see attacks.rehearsal.rehearse")
        return found

    def public_images(self) -> Images:
        """Return the public images.

        Raises:
            FedveilError: the threat model grants none.
        """
        if self.public is None:
            raise FedveilError("the threat model grants no public images (public_data)")
        return self.public


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """An attack with its hyperparameters; `repr` shows exactly these."""

    name: ClassVar[str]
    needs: ClassVar[ThreatModel]
    """The grants without which the attack can't run (labels excepted: they are given or recovered)."""
    adaptive: ClassVar[bool] = False
    """It reckons with the defence (DESIGN: a record without such an attack is incomplete)."""

    @classmethod
    def configured(cls, inversion: InvertingGradients) -> Attack:
        """Return the attack with these settings of the gradient inversion, if it uses one."""
        return cls()

    def applies(self, knowledge: Knowledge) -> bool:
        """Whether the attack says anything about a defence that the attacker has rehearsed as in ``knowledge``."""
        return True

    def __call__(
        self,
        observations: Sequence[Observation],
        knowledge: Knowledge,
        *,
        earlier: Mapping[str, Sequence[Reconstruction]] | None = None,
    ) -> list[Reconstruction]:
        """Attack a batch of victims at once.

        Args:
            observations: victims whose batches have one size and whose updates are of one kind.
            knowledge: what the attacker holds.
            earlier: results of other attacks on the same observations, by name, that this one may build on.

        Raises:
            FedveilError: the attack needs more than the threat model grants, or is handed more.
        """
        lacking = knowledge.threat_model.lacks(self.needs)
        if lacking:
            raise FedveilError(
                f"attack {self.name!r} needs {', '.join(lacking)}, which the threat model does not grant"
            )
        _refuse_excess(observations, knowledge)
        return self.run(observations, knowledge, earlier or {})

    @abstractmethod
    def run(
        self,
        observations: Sequence[Observation],
        knowledge: Knowledge,
        earlier: Mapping[str, Sequence[Reconstruction]],
    ) -> list[Reconstruction]:
        """Do the attack; see `__call__`, which has checked the grants."""


def _refuse_excess(observations: Sequence[Observation], knowledge: Knowledge) -> None:
    held = [
        ("the attacker", "public_data", knowledge.public is not None),
        ("the attacker", "defense_algorithm", bool(knowledge.rehearsals)),
    ]
    for observation in observations:
        holder = f"the observation of client {observation.client}"
        held.append((holder, "labels", observation.labels is not None))
        held.append((holder, "trained_images", observation.trained_images is not None))
    for holder, grant, holds in held:
        if holds and not getattr(knowledge.threat_model, grant):
            raise FedveilError(f"{holder} holds {grant}, which is not granted")
