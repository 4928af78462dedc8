"""An audit: capture what clients would send, attack it, score it. It runs through an `Executor`, like the rounds.

A client's update comes from `fl.training.local_update`, the function that trains, with the client's defence in place. Each
attack gets an `Observation` that holds what its threat model grants; originals stay with the scorer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from fedveil.attacks.base import Attack, Knowledge, Observation
from fedveil.attacks.inverse import InverseTraining
from fedveil.attacks.preparation import CODE, MODULES, AttackerPreparation, prepare_attacker
from fedveil.attacks.scoring import ClassMeanGuess, Gallery, Judge, Scorer, VictimBatch, match, train_judge
from fedveil.defense.base import Defense, DefenseContext, TrainedOn
from fedveil.fl.cache import State, cached, fingerprint
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.executor import Executor, Handle, Slot
from fedveil.fl.messages import PrivacyRecord, Reconstruction, ThreatModel, UpdateKind
from fedveil.fl.models import ModelSpec, build_model
from fedveil.fl.rounds import Federation, ServerState
from fedveil.fl.seeding import derive_seed, torch_stream
from fedveil.fl.training import Weights, local_update


@dataclass(frozen=True)
class Target:
    """One victim batch of the plan: whose images, which ones.

    Attributes:
        number: of the batch.
        client: whose.
        indices: into the client's shard, B of them.
        victims: the victims' numbers.
        gallery: positions of the originals in the gallery.
    """

    number: int
    client: int
    indices: tuple[int, ...]
    victims: tuple[int, ...]
    gallery: tuple[int, ...]


@dataclass(frozen=True)
class AuditPlan:
    """What is audited, fixed by the seed and the same for every defence.

    Attributes:
        targets: the victim batches.
        attacks: in the order in which they run.
        labels_known: labels are granted.
        local_steps: the client's steps on a victim batch; 1 sends the gradient.
        seed: of the trial.
        device_chunk: victim batches that one slot attacks together.
    """

    targets: tuple[Target, ...]
    attacks: tuple[Attack, ...]
    labels_known: bool
    local_steps: int
    seed: int
    device_chunk: int


@dataclass(frozen=True, eq=False)
class Picture:
    """One victim as a person would look at it, each (C, H, W) in [0, 1].

    Attributes:
        victim: its number.
        original: as in the data set.
        trained: what the client trained on.
        rebuilt: by attack.
    """

    victim: int
    original: Tensor
    trained: Tensor
    rebuilt: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class AuditResult:
    """One audited round.

    Attributes:
        records: one per victim and attack.
        pictures: of the first victims.
    """

    records: tuple[PrivacyRecord, ...]
    pictures: tuple[Picture, ...]


def choose_targets(
    shards: Sequence[Images], *, victims: int, batch_size: int, clients: int, gallery: int, seed: int
) -> tuple[tuple[Target, ...], Gallery]:
    """Draw victims from the first ``clients`` clients' shards, and the gallery among which each has to be found.

    Args:
        shards: of all clients, in order.
        victims: how many images, a multiple of ``batch_size``.
        batch_size: images behind one update, all of one client.
        clients: victims come from so many clients, in turn.
        gallery: images in the gallery, at least the victims; the rest are other private images.
        seed: of the trial.

    Raises:
        FedveilError: the shards hold too few images for distinct victims.
    """
    orders = [torch.randperm(len(s), generator=torch_stream(seed, "victims", c)) for c, s in enumerate(shards)]
    rows = [order.split(batch_size) for order in orders[:clients]]
    # In turn, so that every client is hit before one is hit twice; a client drops out when its images are used up.
    turns = [
        (turn, client) for client, row in enumerate(rows) for turn, own in enumerate(row) if len(own) == batch_size
    ]
    batches = victims // batch_size
    if len(turns) < batches:
        raise FedveilError(
            f"audit.victims: {victims} in batches of {batch_size}; the {clients} audited client(s) have images for"
            f" {len(turns) * batch_size}"
        )
    targets: list[Target] = []
    for number, (turn, client) in enumerate(sorted(turns)[:batches]):
        ids = tuple(range(number * batch_size, (number + 1) * batch_size))
        targets.append(Target(number, client, tuple(rows[client][turn].tolist()), ids, ids))
    chosen = {(t.client, i) for t in targets for i in t.indices}
    pixels = [shards[t.client].pixels[i] for t in targets for i in t.indices]
    others = [(c, i) for c, order in enumerate(orders) for i in order.tolist() if (c, i) not in chosen]
    drawn = torch.randperm(len(others), generator=torch_stream(seed, "gallery"))[: max(0, gallery - len(pixels))]
    pixels += [shards[c].pixels[i] for c, i in (others[k] for k in drawn.tolist())]
    return tuple(targets), Gallery(torch.stack(pixels))


def build_scorer(
    public: Images, gallery: Gallery, *, classes: int, seed: int, device: torch.device, cache: Path | None = None
) -> Scorer:
    """Train the evaluation classifier on untouched public images, or take it from the cache, and return the scorer."""
    spec = ModelSpec("convnet", public.shape, classes)
    model = build_model(spec)

    def build() -> State:
        trained = train_judge(public, classes=classes, seed=derive_seed(seed, "judge"), device=device)
        return trained.model.cpu().state_dict()

    model.load_state_dict(cached(cache, ("judge", spec, fingerprint(public), seed, device.type), build))
    floor = ClassMeanGuess.from_public(public, classes=classes)
    return Scorer(Judge(model.eval().requires_grad_(False)), gallery, floor, seed)


PreparationKey = tuple[bool, int | None]
"""(the modules are known, the client whose modules they are or None)."""


def preparation_key(attack: Attack, trained_on: TrainedOn, client: int) -> PreparationKey | None:
    """Return which preparation an attack on a client builds on; None for an attack that knows nothing of the defence."""
    if not attack.needs.defense_algorithm:
        return None
    if not attack.needs.defense_modules or trained_on is TrainedOn.NOTHING:
        return (False, None)
    return (True, client if trained_on is TrainedOn.CLIENT else None)


@dataclass(frozen=True)
class _RehearsalJob:
    key: PreparationKey
    defense: Handle[Defense]
    public: Handle[Images]
    federation: Handle[Federation]
    training: InverseTraining
    seed: int
    cache: Path | None


def _rehearse(slot: Slot, job: _RehearsalJob) -> AttackerPreparation:
    known, client = job.key
    seed = derive_seed(job.seed, "attacker", *(() if client is None else (client,)))
    preparation = DefenseContext(job.public.get(), job.federation.get().model, slot.device, seed, job.cache)
    found = prepare_attacker(job.defense.get(), MODULES if known else CODE, preparation, job.training)
    return found if found.inverse is None else replace(found, inverse=found.inverse.cpu())


Preparations = Mapping[PreparationKey, Handle[AttackerPreparation]]


def prepare_attackers(
    plan: AuditPlan,
    defense: Handle[Defense],
    trained_on: TrainedOn,
    federation: Handle[Federation],
    prepared: Sequence[Handle[Defense]],
    public: Handle[Images],
    training: InverseTraining,
    executor: Executor,
    cache: Path | None,
) -> dict[PreparationKey, Handle[AttackerPreparation]]:
    """Let the attacker prepare once per trial: against the defence's code, and against each client's modules.

    Args:
        plan: says which attacks and clients there are.
        defense: the untrained defence: its code and hyperparameters.
        trained_on: what its modules are trained on.
        federation: for the classifier's code.
        prepared: the clients' own defences, by client number.
        public: the attacker's images.
        training: of the inverse.
        executor: where to prepare.
        cache: see `DefenseContext`.
    """
    keys = {preparation_key(attack, trained_on, target.client) for attack in plan.attacks for target in plan.targets}
    wanted = sorted((key for key in keys if key is not None), key=lambda k: (k[0], -1 if k[1] is None else k[1]))
    jobs = [
        _RehearsalJob(key, prepared[key[1] or 0] if key[0] else defense, public, federation, training, plan.seed, cache)
        for key in wanted
    ]
    return {job.key: executor.broadcast(found) for job, found in zip(jobs, executor.map(_rehearse, jobs), strict=True)}


@dataclass(frozen=True)
class AuditContext:
    """What all audits of a trial share, behind handles.

    Attributes:
        plan: what is audited.
        federation: the run.
        public: the attacker's images.
        scorer: judges reconstructions.
        preparations: what the attacker prepared.
        trained_on: what the defence's modules are trained on.
    """

    plan: AuditPlan
    federation: Handle[Federation]
    public: Handle[Images]
    scorer: Handle[Scorer]
    preparations: Preparations
    trained_on: TrainedOn


@dataclass(frozen=True)
class _Chunk:
    context: Handle[AuditContext]
    weights: Handle[Weights]
    round: int
    targets: tuple[Target, ...]
    pictures: int


@dataclass(frozen=True)
class _Captured:
    target: Target
    observation: Observation
    trained: Tensor
    truth: Images


def capture(
    slot: Slot, federation: Federation, target: Target, weights: Weights, round_number: int, local_steps: int
) -> _Captured:
    """Let the client train on the victim batch with its defence in place, and keep what it would send."""
    client = federation.clients[target.client]
    truth = client.shard.get().take(torch.tensor(target.indices))
    size = len(target.indices)
    spec = replace(
        federation.training_at(round_number),
        kind=UpdateKind.GRADIENT if local_steps == 1 else UpdateKind.DELTA,
        epochs=local_steps,
        batch_size=size,
    )
    seen: list[Tensor] = []
    stream = torch_stream(federation.seed, "audit", round_number, "batch", target.number)
    result = local_update(
        slot.model(federation.model),
        weights,
        truth,
        client.hooks.get(),
        spec,
        stream,
        on_batch=lambda trained, at: seen.append(trained[at.argsort()].cpu()),
    )
    observation = Observation(target.number, target.client, result.update, weights, size)
    # Fresh noise at each local step: a perfect inversion would average it.
    return _Captured(target, observation, torch.stack(seen).mean(dim=0), truth)


def _audit_chunk(slot: Slot, chunk: _Chunk) -> AuditResult:
    context = chunk.context.get()
    plan, federation, scorer = context.plan, context.federation.get(), context.scorer.get()
    weights = chunk.weights.get()
    captured = [capture(slot, federation, target, weights, chunk.round, plan.local_steps) for target in chunk.targets]
    earlier: dict[str, Sequence[Reconstruction]] = {}
    records: list[PrivacyRecord] = []
    for attack in plan.attacks:
        threat_model = replace(attack.needs, labels=plan.labels_known)
        knowledge = _knowledge(context, attack, threat_model, chunk.targets, slot, federation)
        if not attack.applies(knowledge):
            continue
        observations = [_granted(c, threat_model) for c in captured]
        earlier[attack.name] = attack(observations, knowledge, earlier=earlier)
        for c, found in zip(captured, earlier[attack.name], strict=True):
            batch = VictimBatch(
                round=chunk.round,
                client=c.target.client,
                victims=torch.tensor(c.target.victims),
                originals=c.truth.floats(),
                trained=c.trained,
                labels=c.truth.labels,
                gallery_index=torch.tensor(c.target.gallery),
            )
            records += scorer.score(batch, found, attack=attack.name, threat_model=threat_model)
    return AuditResult(tuple(records), tuple(_pictures(captured, earlier, chunk.pictures)))


def _granted(captured: _Captured, threat_model: ThreatModel) -> Observation:
    return replace(
        captured.observation,
        labels=captured.truth.labels if threat_model.labels else None,
        trained_images=captured.trained if threat_model.trained_images else None,
    )


def _knowledge(
    context: AuditContext,
    attack: Attack,
    threat_model: ThreatModel,
    targets: Sequence[Target],
    slot: Slot,
    federation: Federation,
) -> Knowledge:
    preparations: dict[int | None, AttackerPreparation] = {}
    for target in targets:
        key = preparation_key(attack, context.trained_on, target.client)
        if key is not None:
            preparations[key[1]] = context.preparations[key].get()
    return Knowledge(
        threat_model=threat_model,
        model=federation.model,
        device=slot.device,
        seed=derive_seed(context.plan.seed, "attack"),
        public=context.public.get() if threat_model.auxiliary_data else None,
        preparations=preparations,
    )


def _pictures(
    captured: Sequence[_Captured], found: Mapping[str, Sequence[Reconstruction]], count: int
) -> list[Picture]:
    pictures: list[Picture] = []
    for at, c in enumerate(captured):
        originals = c.truth.floats()
        matched = {name: rs[at].images[match(rs[at].images, originals)] for name, rs in found.items()}
        pictures += [
            Picture(victim, originals[i], c.trained[i], {name: images[i] for name, images in matched.items()})
            for i, victim in enumerate(c.target.victims)
            if victim < count
        ]
    return pictures


def audit(
    context: AuditContext,
    shared: Handle[AuditContext],
    state: ServerState,
    executor: Executor,
    *,
    pictures: int,
) -> AuditResult:
    """Audit the round that ``state`` is about to play.

    Args:
        context: see there.
        shared: the same, shared once with all slots.
        state: of the server.
        executor: where to capture and attack.
        pictures: keep the images of so many victims.
    """
    plan = context.plan
    weights = executor.broadcast(state.weights)
    size = plan.device_chunk
    chunks = [
        _Chunk(shared, weights, state.round, plan.targets[at : at + size], pictures)
        for at in range(0, len(plan.targets), size)
    ]
    results = executor.map(_audit_chunk, chunks)
    return AuditResult(
        tuple(record for result in results for record in result.records),
        tuple(picture for result in results for picture in result.pictures),
    )
