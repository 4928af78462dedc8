"""Clients about to be audited, an attacker, and the truth: see the fixture `make_world` of tests/attacks/audit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fedveil.attacks import Adaptive, AdaptiveModules, InverseTraining, InvertingGradients, Observation, TrainedImages
from fedveil.attacks.audit.capture import capture
from fedveil.attacks.audit.report import AuditReport
from fedveil.attacks.audit.updates import Attacker, audit_updates
from fedveil.attacks.scoring import Scorer
from fedveil.attacks.scoring.victims import VictimBatch
from fedveil.attacks.target.model import target_model
from fedveil.defense import LatentAutoencoder
from fedveil.defense.base import PreparedDefense
from fedveil.fl.data.images import Images
from fedveil.fl.messages import UpdateKind
from fedveil.fl.models import ModelSpec, build_model, init_model
from fedveil.fl.seeding import torch_stream
from fedveil.fl.training import LocalTraining

SPEC = ModelSpec("lenet", (1, 12, 12), 2, width=4)
CPU = torch.device("cpu")
TARGET = target_model(build_model(SPEC), image_shape=SPEC.image_shape, classes=SPEC.classes)
"""One for all tests: what is tried and traced for a classifier is kept with it."""
QUICK = InverseTraining(steps=2, batch_size=8, width=4)
INVERSION = InvertingGradients(steps=1)
ADAPTIVE = Adaptive(inversion=InvertingGradients(steps=1), inverse=QUICK)
MODULES = AdaptiveModules(inversion=InvertingGradients(steps=1), inverse=QUICK)
BOUND = TrainedImages(inverse=QUICK)
LATENT = LatentAutoencoder(steps=1, client_steps=1, public_steps=1, adversary_steps=1)

Blobs = Callable[..., Images]
MakeWorld = Callable[..., "World"]


@dataclass(frozen=True, eq=False)
class World:
    """Clients about to be audited, an attacker, and the truth."""

    shards: tuple[Images, ...]
    prepared: tuple[PreparedDefense, ...]
    attacker: Attacker
    victims: tuple[VictimBatch, ...]
    scorer: Scorer
    local_steps: int

    def captured(self, round: int = 0) -> list[tuple[Observation, VictimBatch]]:
        weights, training = init_model(SPEC, 0), LocalTraining(UpdateKind.DELTA, 1, 4, 0.05)
        return [
            capture(
                build_model(SPEC),
                weights,
                batch,
                self.prepared[batch.client],
                training,
                local_steps=self.local_steps,
                stream=torch_stream(0, "audit", round, batch.number),
            )
            for batch in self.victims
        ]

    def audit(self, round: int = 0) -> AuditReport:
        seen = self.captured(round)
        return audit_updates(
            self.attacker, [o for o, _ in seen], [b for _, b in seen], scorer=self.scorer, round=round, device=CPU
        )
