"""An audit's work over worker slots: the attacker prepares there, and there updates are captured and attacked.

What an attack does with an update, and how it is scored, knows nothing of slots:
`fedveil.attacks.audit.updates.audit_updates`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedveil.attacks.adaptive.preparation import (
    PreparationKey,
    preparation_key,
    prepare_attacker,
)
from fedveil.attacks.audit.aggregate import aggregated, in_sums, sum_note
from fedveil.attacks.audit.capture import capture, together, trains_on
from fedveil.attacks.audit.report import AuditReport
from fedveil.attacks.audit.updates import Attacker, audit_updates
from fedveil.attacks.base import AttackerPreparation, Observation
from fedveil.attacks.scoring import Gallery, Scorer, build_scorer, summarise
from fedveil.attacks.scoring.victims import VictimBatch
from fedveil.attacks.target.model import target_model
from fedveil.defense.base import Defense, DefenseContext, PreparedDefense
from fedveil.fl.data import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.executor import Executor, Handle, Slot
from fedveil.fl.messages import PrivacyRecord
from fedveil.fl.models import build_model
from fedveil.fl.progress import doing
from fedveil.fl.rounds import Federation, ServerState
from fedveil.fl.seeding import derive_seed, torch_stream
from fedveil.orchestrator.config import Experiment
from fedveil.orchestrator.run.setup import Setup


class Auditor:
    """Attacks what clients would send, round by round.

    Args:
        experiment: says how.
        victims: the victim batches, of which those are audited that clients train on behind their defence, and that make
            whole sums where the server sees no more than that.
        federation: the run.
        attacker: ready.
        scorer: judges what it makes.
        executor: where to capture and attack.
        pictures: the images of the victims numbered below this are kept.
    """

    def __init__(
        self,
        experiment: Experiment,
        victims: Sequence[VictimBatch],
        federation: Federation,
        attacker: Attacker,
        scorer: Scorer,
        executor: Executor,
        *,
        pictures: int,
    ) -> None:
        everyone = sum(map(len, victims))
        # Once for each client: a handle may have to fetch them.
        hooks = {number: federation.clients[number].hooks.get() for number in {batch.client for batch in victims}}
        victims = [batch for batch in victims if trains_on(hooks[batch.client], batch)]
        if not victims:
            raise FedveilError("audit: the defence leaves all victims out of training, so there is nothing to attack")
        summed = experiment.build_defense().summed
        sums = in_sums(victims, summed)
        if not sums:
            raise FedveilError(f"audit: the victims make no sum of {summed} clients; raise audit.victims")
        self._left_out = everyone - sum(len(batch) for batches in sums for batch in batches)
        self._proved = proved(sums, federation)
        chunk = -(-len(sums) // experiment.audit.chunks)
        parts = [sums[at : at + chunk] for at in range(0, len(sums), chunk)]
        # What a part says of itself, where others say the like at the same time.
        names = [f"part {number + 1} of {len(parts)}" if len(parts) > 1 else "" for number in range(len(parts))]
        self._chunks = list(zip(names, parts, strict=True))
        self._shared = [executor.broadcast(value) for value in (federation, attacker, scorer)]
        self._local_steps = experiment.audit.local_steps
        note = sum_note(build_model(federation.model), summed, self._local_steps)
        self._notes = () if note is None else (note,)
        self._observations = experiment.audit.observations
        self._executor = executor
        self._pictures = pictures
        self._judge = scorer.judge_quality
        self._adaptive = attacker.adaptive
        self._training = attacker.training
        laws = [own.law for own in attacker.preparations.values() if own.law is not None]
        self.law = laws[0] if laws else None
        """How images share, as the attacker has learnt it; None where the defence makes no one image of many."""

    def audit(self, state: ServerState, past: Sequence[ServerState] = ()) -> AuditReport:
        """Audit the round that comes after ``state``.

        Args:
            state: of the federation.
            past: the states before that, the newest first, for victims that are observed several times.
        """
        rounds = observed_rounds((state, *past), self._observations)
        shared = (*self._shared, rounds, self._local_steps, self._pictures)
        report = AuditReport.merged(self._executor.map(_audit_batches, self._chunks, shared=shared))
        return replace(report, notes=(*self._notes, *report.notes))

    def summary(self, records: Sequence[PrivacyRecord]) -> dict[str, float]:
        """Return the privacy scalars of all audits so far; none before the first."""
        if not records:
            return {}
        scores = summarise(records, adaptive=self._adaptive, judge=self._judge, training=self._training)
        left_out = {"privacy/left_out_victims": float(self._left_out)} if self._left_out else {}
        return scores | self._proved | left_out


def proved(sums: Sequence[Sequence[VictimBatch]], federation: Federation) -> dict[str, float]:
    """Return ``privacy/proved_mse``: the mean over victims of `PreparedDefense.indistinct_error`.

    A victim is one of its group by chance, so what holds of the mean over a group holds of victims on average. Where several
    images are behind what the server sees, an attack's answers are matched to them by the truth, which tells apart what
    looks the same: then nothing is proved.

    Args:
        sums: the batches that reach the server as one, at least one of them.
        federation: of their clients.

    Returns:
        nothing where nothing is proved of a victim.
    """
    if any(sum(map(len, batches)) > 1 for batches in sums):
        return {}
    by_client: dict[int, list[Images]] = defaultdict(list)
    for (batch,) in sums:
        by_client[batch.client].append(batch.images)
    errors: list[Tensor] = []
    for number, own in by_client.items():
        client = federation.clients[number]
        hooks = client.hooks.get()
        victims = Images(torch.cat([one.pixels for one in own]), torch.cat([one.labels for one in own]))
        found = hooks.indistinct_error(victims, client.shard.get()) if isinstance(hooks, PreparedDefense) else None
        if found is None:
            return {}
        errors.append(found)
    return {"privacy/proved_mse": float(torch.cat(errors).mean())}


def prepare_audits(
    experiment: Experiment,
    setup: Setup,
    federation: Federation,
    context: DefenseContext,
    public: Any,
    executor: Executor,
    *,
    pictures: int,
) -> Auditor:
    """Let the attacker and the judge learn, on slots, all that they can before an update arrives.

    Args:
        experiment: what is run.
        setup: its images; the attacker's are the auxiliary ones.
        federation: with the clients' prepared defences, for the tiers in which modules are stolen.
        context: of the defence.
        public: what the defence learnt on public images, which the attacker holds too.
        executor: where to prepare.
        pictures: see `Auditor`.
    """
    attacker = _ready_attacker(experiment, setup, federation, context, public, executor)
    judged = (setup.auxiliary, setup.untouched, len(setup.data.classes), experiment.seed, context.cache)
    (scorer,) = executor.map(_make_scorer, [setup.gallery], shared=judged)
    return Auditor(experiment, setup.victims, federation, attacker, scorer, executor, pictures=pictures)


def _audit_batches(
    slot: Slot,
    part: tuple[str, Sequence[tuple[VictimBatch, ...]]],
    federation: Federation,
    attacker: Attacker,
    scorer: Scorer,
    rounds: Sequence[ServerState],
    local_steps: int,
    pictures: int,
) -> AuditReport:
    name, sums = part
    audited = rounds[0].round

    def sent(batch: VictimBatch) -> tuple[Observation, VictimBatch]:
        return together(
            [
                capture(
                    slot.model(federation.model),
                    state.weights,
                    batch,
                    federation.clients[batch.client].hooks.get(),
                    federation.training_at(state.round),
                    local_steps=local_steps,
                    stream=torch_stream(federation.seed, "audit", audited, "batch", batch.number, "observation", at),
                    memory=state.memories.get(batch.client),
                )
                for at, state in enumerate(rounds)
            ]
        )

    seen = [aggregated([sent(batch) for batch in batches]) for batches in sums]
    with doing(name) if name else nullcontext():
        report = audit_updates(
            attacker,
            [observation for observation, _ in seen],
            [batch for _, batch in seen],
            scorer=scorer,
            round=audited,
            device=slot.device,
        )
    return report.first(pictures)  # the images of all victims may be large


def observed_rounds(rounds: Sequence[ServerState], observations: int) -> list[ServerState]:
    """Return before which rounds, and from which state, the victims' updates are captured.

    A client trains on an image in every round, and an attacker keeps all that it sends. Early on there were fewer rounds
    than the audit asks for; a server is free to send the same weights once more, so the rounds are gone through again.

    Args:
        rounds: the state before each, the audited round first and then back in time.
        observations: how many are wanted.
    """
    return [rounds[at % len(rounds)] for at in range(observations)]


def _make_scorer(
    slot: Slot, gallery: Gallery, auxiliary: Images, untouched: Images, classes: int, seed: int, cache: Path | None
) -> Scorer:
    return build_scorer(
        auxiliary, gallery, classes=classes, seed=seed, device=slot.device, untouched=untouched, cache=cache
    )


def _ready_attacker(
    experiment: Experiment,
    setup: Setup,
    federation: Federation,
    context: DefenseContext,
    public: Any,
    executor: Executor,
) -> Attacker:
    seed, attacks = derive_seed(experiment.seed, "attacker"), tuple(experiment.audit.build_attacks())
    defense = experiment.build_defense()
    seen_as = {"observations": experiment.audit.observations, "local_steps": experiment.audit.local_steps}
    found = {
        preparation_key(attack, defense.trained_on, batch.client, **seen_as)
        for attack in attacks
        for batch in setup.victims
    }
    keys = sorted((key for key in found if key is not None), key=repr)
    auxiliary = executor.broadcast(setup.auxiliary)
    shadow: Handle[PreparedDefense] | None = None
    if not all(key.modules for key in keys):
        own = replace(context, seed=seed)
        shadow = executor.broadcast(executor.map(_shadow, [defense], shared=(auxiliary, own, public))[0])
    items = [(key, federation.clients[key.client or 0].hooks if key.modules else shadow) for key in keys]
    prepared = executor.map(_prepare_attacker, items, shared=(auxiliary, seed, len(setup.data.classes)))
    return Attacker(
        target=target_model(
            build_model(setup.model), image_shape=setup.model.image_shape, classes=len(setup.data.classes)
        ),
        attacks=attacks,
        auxiliary=setup.auxiliary,
        preparations=dict(zip(keys, prepared, strict=True)),
        trained_on=defense.trained_on,
        labels_known=experiment.audit.labels == "known",
        seed=derive_seed(experiment.seed, "attack"),
        **seen_as,
    )


def _shadow(
    slot: Slot, defense: Defense[Any], auxiliary: Images, context: DefenseContext, public: Any
) -> PreparedDefense:
    return defense.shadow(auxiliary, replace(context, device=slot.device), public)


def _prepare_attacker(
    slot: Slot, item: tuple[PreparationKey, Handle[PreparedDefense]], auxiliary: Images, seed: int, classes: int
) -> AttackerPreparation:
    key, prepared = item
    stream = torch_stream(seed, "inverse", -1 if key.client is None else key.client)
    return prepare_attacker(prepared.get(), auxiliary, key, classes=classes, device=slot.device, stream=stream)
