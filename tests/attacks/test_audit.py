from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fedveil.attacks.audit as module
from fedveil.attacks import (
    Adaptive,
    AdaptiveModules,
    Attack,
    Baseline,
    InvertingGradients,
    Knowledge,
    Observation,
    TrainedImages,
)
from fedveil.attacks.audit import (
    AuditContext,
    AuditPlan,
    AuditResult,
    audit,
    build_scorer,
    capture,
    choose_targets,
    preparation_key,
    prepare_attackers,
)
from fedveil.attacks.inverse import InverseTraining
from fedveil.attacks.preparation import AttackerPreparation
from fedveil.attacks.scoring import ClassMeanGuess, Gallery, Judge, Scorer, VictimBatch, train_judge
from fedveil.defense import (
    Defense,
    DefenseContext,
    LatentNoise,
    LatentPerturbation,
    NoDefense,
    PixelNoise,
    Stack,
    TopK,
    TrainedOn,
    UpdateNoise,
)
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.executor import SerialExecutor, Slot
from fedveil.fl.messages import Reconstruction, ThreatModel, UpdateKind
from fedveil.fl.models import ModelSpec, build_model, init_model
from fedveil.fl.rounds import Client, Federation, ServerState, start
from fedveil.fl.seeding import derive_seed, torch_stream
from fedveil.fl.strategies import FedAvg
from fedveil.fl.training import LocalTraining, load_exchanged, local_update

SPEC = ModelSpec("lenet", (1, 12, 12), 2, width=4)
CPU = torch.device("cpu")
QUICK = InverseTraining(steps=2, batch_size=8, width=4)
INVERSION = InvertingGradients(steps=2)
LATENT = LatentPerturbation(steps=1, client_steps=1, public_steps=1, adversary_steps=1)
DEFENSES = [NoDefense(), PixelNoise(), TopK(), UpdateNoise(), LATENT]

Blobs = Callable[..., Images]
MakeWorld = Callable[..., "World"]


@dataclass(frozen=True, eq=False)
class World:
    """A federation about to be audited, and all that belongs to it."""

    shards: tuple[Images, ...]
    public: Images
    federation: Federation
    prepared: tuple[Defense, ...]
    context: AuditContext
    executor: SerialExecutor

    def audit(self, *, pictures: int = 0, state: ServerState | None = None) -> AuditResult:
        shared = self.executor.broadcast(self.context)
        return audit(self.context, shared, state or start(self.federation), self.executor, pictures=pictures)


@pytest.fixture(scope="session")
def judge(blobs: Blobs) -> Judge:
    return train_judge(blobs(12, 100, side=12), classes=2, seed=0, epochs=1)


@pytest.fixture
def make_world(blobs: Blobs, judge: Judge) -> MakeWorld:
    def make(
        defense: Defense,
        attacks: Sequence[Attack],
        *,
        victims: int = 3,
        batch_size: int = 1,
        clients: int = 2,
        labels_known: bool = True,
        local_steps: int = 1,
        device_chunk: int = 64,
    ) -> World:
        executor = SerialExecutor()
        public = blobs(12, 100, side=12)
        shards = tuple(blobs(6, c, side=12) for c in range(clients))
        preparation = DefenseContext(public, SPEC, CPU, seed=0)
        pretrained = defense.pretrain(preparation)
        prepared = tuple(pretrained.prepare(shard, preparation, c) for c, shard in enumerate(shards))
        federation = Federation(
            model=SPEC,
            clients=tuple(
                Client(c, len(shard), executor.broadcast(shard), executor.broadcast(hooks))
                for c, (shard, hooks) in enumerate(zip(shards, prepared, strict=True))
            ),
            strategy=FedAvg(),
            training=LocalTraining(UpdateKind.DELTA, epochs=1, batch_size=4, learning_rate=0.05),
            cohort=clients,
            shares=1,
            seed=0,
        )
        targets, gallery = choose_targets(
            shards, victims=victims, batch_size=batch_size, clients=clients, gallery=8, seed=0
        )
        plan = AuditPlan(targets, tuple(attacks), labels_known, local_steps, seed=0, device_chunk=device_chunk)
        shared, images = executor.broadcast(federation), executor.broadcast(public)
        preparations = prepare_attackers(
            plan,
            executor.broadcast(defense),
            defense.trained_on,
            shared,
            [executor.broadcast(d) for d in prepared],
            images,
            QUICK,
            executor,
            None,
        )
        scorer = Scorer(judge, gallery, ClassMeanGuess.from_public(public, classes=2), seed=0)
        context = AuditContext(plan, shared, images, executor.broadcast(scorer), preparations, defense.trained_on)
        return World(shards, public, federation, prepared, context, executor)

    return make


@dataclass(frozen=True, kw_only=True)
class Spy(Attack):
    """Keeps what it is handed and answers with grey."""

    name: ClassVar[str] = "spy"
    needs: ClassVar[ThreatModel] = ThreatModel(labels=False)
    handed: ClassVar[list[tuple[list[Observation], Knowledge, Mapping[str, Sequence[Reconstruction]]]]] = []

    def run(
        self,
        observations: Sequence[Observation],
        knowledge: Knowledge,
        earlier: Mapping[str, Sequence[Reconstruction]],
    ) -> list[Reconstruction]:
        self.handed.append((list(observations), knowledge, dict(earlier)))
        return [
            Reconstruction(torch.full((o.batch_size, 1, 12, 12), 0.5), torch.zeros(o.batch_size, dtype=torch.int64), 0)
            for o in observations
        ]


@dataclass(frozen=True, kw_only=True)
class AllSeeingSpy(Spy):
    """Is granted everything there is to grant."""

    name: ClassVar[str] = "all_seeing"
    needs: ClassVar[ThreatModel] = replace(TrainedImages.needs, labels=False)
    handed: ClassVar[list[tuple[list[Observation], Knowledge, Mapping[str, Sequence[Reconstruction]]]]] = []


@pytest.fixture(autouse=True)
def forget() -> None:
    Spy.handed.clear()
    AllSeeingSpy.handed.clear()


# Choosing victims


def choose(shards: Sequence[Images], **changes: int) -> Any:
    settings = {"victims": 6, "batch_size": 2, "clients": 2, "gallery": 9, "seed": 5, **changes}
    return choose_targets(shards, **settings)


def test_victims_are_distinct_and_lie_in_the_gallery_where_stated(blobs: Blobs) -> None:
    shards = [blobs(5, 0), blobs(7, 1), blobs(4, 2)]
    targets, gallery = choose(shards)
    assert [t.number for t in targets] == [0, 1, 2]
    assert [t.client for t in targets] == [0, 1, 0]
    assert [t.victims for t in targets] == [(0, 1), (2, 3), (4, 5)]
    assert len({(t.client, i) for t in targets for i in t.indices}) == 6
    assert gallery.pixels.shape == (9, 1, 16, 16)
    for target in targets:
        assert torch.equal(gallery.pixels[list(target.gallery)], shards[target.client].pixels[list(target.indices)])
    assert len({str(image.tolist()) for image in gallery.pixels}) == 9


def test_a_client_that_runs_out_of_images_drops_out(blobs: Blobs) -> None:
    targets, _ = choose([blobs(3, 0), blobs(8, 1)], victims=8)
    assert [t.client for t in targets] == [0, 1, 1, 1]


def test_only_the_first_clients_are_audited_but_all_fill_the_gallery(blobs: Blobs) -> None:
    shards = [blobs(4, 0), blobs(4, 1)]
    targets, gallery = choose(shards, victims=2, clients=1, gallery=100)
    assert {t.client for t in targets} == {0}
    everything = {str(image.tolist()) for shard in shards for image in shard.pixels}
    assert {str(image.tolist()) for image in gallery.pixels} == everything
    assert len(gallery.pixels) == 8


def test_the_gallery_holds_all_victims_even_if_asked_for_less(blobs: Blobs) -> None:
    _, gallery = choose([blobs(4, 0), blobs(4, 1)], gallery=1)
    assert len(gallery.pixels) == 6


def test_the_seed_alone_chooses(blobs: Blobs) -> None:
    shards = [blobs(8, 0), blobs(8, 1)]
    first, gallery = choose(shards)
    torch.rand(3)
    again, same = choose(shards)
    assert first == again
    assert torch.equal(gallery.pixels, same.pixels)
    assert choose(shards, seed=6)[0] != first


def test_every_defence_faces_the_same_victims(make_world: MakeWorld) -> None:
    worlds = [make_world(defense, [Spy()]) for defense in (NoDefense(), PixelNoise(), LATENT)]
    plans = [world.context.plan.targets for world in worlds]
    assert plans[0] == plans[1] == plans[2]
    truths = [[(r.client, r.victim, r.label, r.baseline_mse) for r in world.audit().records] for world in worlds]
    assert truths[0] == truths[1] == truths[2]


def test_too_few_images_are_refused(blobs: Blobs) -> None:
    with pytest.raises(FedveilError, match=r"8 in batches of 2; the 2 audited client\(s\) have images for 6"):
        choose([blobs(3, 0), blobs(5, 1)], victims=8)


# Capturing


@pytest.mark.parametrize("local_steps", [1, 2])
@pytest.mark.parametrize("defense", DEFENSES, ids=lambda d: d.name)
def test_updates_come_from_the_function_that_trains_with_the_defence_in_place(
    defense: Defense, local_steps: int, make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(defense, [Spy()], batch_size=3, local_steps=local_steps)
    target = world.context.plan.targets[0]
    calls: list[tuple[Any, ...]] = []

    def spy(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return local_update(*arguments, **options)

    assert module.local_update is local_update
    monkeypatch.setattr(module, "local_update", spy)
    weights = init_model(SPEC, 1)
    captured = capture(Slot(CPU), world.federation, target, weights, 2, local_steps)
    ((_, used, shard, hooks, spec, _),) = calls
    client = world.federation.clients[target.client]
    assert used is weights
    assert hooks is client.hooks.get() is world.prepared[target.client]
    assert torch.equal(shard.pixels, client.shard.get().pixels[list(target.indices)])
    kind = UpdateKind.GRADIENT if local_steps == 1 else UpdateKind.DELTA
    assert (spec.kind, spec.batch_size, spec.learning_rate) == (kind, 3, 0.05)
    update = captured.observation.update
    assert (update.kind, update.local_steps) == (kind, local_steps)
    assert captured.observation.weights is weights
    assert captured.observation.labels is None
    assert captured.observation.trained_images is None

    # The very same call gives the very same update: nothing is added on the way to the attacker.
    stream = torch_stream(world.federation.seed, "audit", 2, "batch", target.number)
    expected = local_update(build_model(SPEC), weights, shard, world.prepared[target.client], spec, stream).update
    assert update.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(update.tensors[name], expected.tensors[name]) for name in expected.tensors)


@pytest.mark.parametrize("defense", [NoDefense(), PixelNoise(), LATENT], ids=lambda d: d.name)
def test_the_trained_images_are_those_behind_the_update(defense: Defense, make_world: MakeWorld) -> None:
    world = make_world(defense, [Spy()], batch_size=3)
    weights = init_model(SPEC, 1)
    captured = capture(Slot(CPU), world.federation, world.context.plan.targets[0], weights, 0, 1)
    model = build_model(SPEC)
    load_exchanged(model, weights)
    loss = F.cross_entropy(model(captured.trained), captured.truth.labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    for gradient, sent in zip(gradients, captured.observation.update.tensors.values(), strict=True):
        torch.testing.assert_close(gradient, sent, rtol=1e-4, atol=1e-6)
    changed = not torch.equal(captured.trained, captured.truth.floats())
    assert changed == (defense.name != "none")


def test_the_order_of_the_trained_images_is_that_of_the_originals(make_world: MakeWorld) -> None:
    world = make_world(PixelNoise(strength=0.01), [Spy()], batch_size=3)
    for number in range(4):
        captured = capture(Slot(CPU), world.federation, world.context.plan.targets[0], init_model(SPEC, 1), number, 1)
        assert float((captured.trained - captured.truth.floats()).abs().max()) < 0.06


def test_over_several_steps_a_perfect_inversion_averages_the_noise(make_world: MakeWorld) -> None:
    world = make_world(PixelNoise(strength=0.02), [Spy()])

    def ceiling(local_steps: int) -> float:
        captured = capture(
            Slot(CPU), world.federation, world.context.plan.targets[0], init_model(SPEC, 1), 0, local_steps
        )
        return float((captured.trained - captured.truth.floats()).square().mean())

    assert ceiling(16) < 0.3 * ceiling(1)


# Preparations


@pytest.mark.parametrize(
    ("attack", "trained_on", "key"),
    [
        (Baseline(), TrainedOn.CLIENT, None),
        (InvertingGradients(), TrainedOn.CLIENT, None),
        (Adaptive(), TrainedOn.CLIENT, (False, None)),
        (Adaptive(), TrainedOn.NOTHING, (False, None)),
        (AdaptiveModules(), TrainedOn.NOTHING, (False, None)),
        (AdaptiveModules(), TrainedOn.PUBLIC, (True, None)),
        (AdaptiveModules(), TrainedOn.CLIENT, (True, 4)),
        (TrainedImages(), TrainedOn.CLIENT, (True, 4)),
    ],
)
def test_which_rehearsal_an_attack_builds_on(
    attack: Attack, trained_on: TrainedOn, key: tuple[bool, int | None] | None
) -> None:
    assert preparation_key(attack, trained_on, 4) == key


@pytest.mark.parametrize(
    ("defense", "keys"),
    [
        (PixelNoise(), {(False, None)}),
        (LatentNoise(public_steps=1), {(False, None), (True, None)}),
        (replace(LATENT, scope="public"), {(False, None), (True, None)}),
        (LATENT, {(False, None), (True, 0), (True, 1)}),
    ],
    ids=["nothing", "autoencoder", "public", "client"],
)
def test_the_attacker_prepares_once_for_each_version_of_the_modules(
    defense: Defense, keys: set[tuple[bool, int | None]], make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    rehearsed: list[tuple[Defense, bool, int]] = []
    real = module.prepare_attacker

    def spy(
        known: Defense, granted: ThreatModel, preparation: DefenseContext, training: InverseTraining
    ) -> AttackerPreparation:
        rehearsed.append((known, granted.defense_modules, preparation.seed))
        assert torch.equal(preparation.public.pixels, world_public)
        return real(known, granted, preparation, training)

    monkeypatch.setattr(module, "prepare_attacker", spy)
    world_public = make_world(NoDefense(), [Spy()]).public.pixels
    rehearsed.clear()
    attacks = [Spy(), Adaptive(inversion=INVERSION), AdaptiveModules(inversion=INVERSION), TrainedImages()]
    # Three clients hold the defence, the victims are of the first two.
    world = make_world(defense, attacks, victims=2, clients=3)
    assert {*world.context.preparations} == keys
    assert len(rehearsed) == len(keys)
    for known, with_modules, seed in rehearsed:
        assert (known is defense) == (not with_modules)
        # The attacker's randomness is not the trial's.
        assert seed not in (0, derive_seed(0))
    modules = [known for known, with_modules, _ in rehearsed if with_modules]
    assert all(known is own for known, own in zip(modules, world.prepared, strict=False))


def test_each_attack_is_handed_the_rehearsals_of_its_own_threat_model(make_world: MakeWorld) -> None:
    world = make_world(LATENT, [Adaptive(inversion=INVERSION), AllSeeingSpy()], victims=2)
    world.audit()
    ((observations, knowledge, earlier),) = AllSeeingSpy.handed
    for observation in observations:
        given = knowledge.preparation(observation.client)
        assert given is world.context.preparations[(True, observation.client)].get()
        assert given is not world.context.preparations[(False, None)].get()
    assert {*earlier} == {"adaptive"}


# End to end


@pytest.mark.parametrize("defense", DEFENSES, ids=lambda d: d.name)
def test_every_record_has_its_ceiling_floor_and_threat_model(defense: Defense, make_world: MakeWorld) -> None:
    attacks: list[Attack] = [
        Baseline(),
        INVERSION,
        Adaptive(inversion=INVERSION),
        AdaptiveModules(inversion=INVERSION),
    ]
    if defense.name not in ("top_k", "update_noise"):
        attacks.append(TrainedImages())
    world = make_world(defense, attacks)
    state = replace(start(world.federation), round=4)
    result = world.audit(pictures=2, state=state)
    by_attack = {attack.name: [r for r in result.records if r.attack == attack.name] for attack in attacks}
    assert sum(len(records) for records in by_attack.values()) == len(result.records) == 3 * len(attacks)
    for attack in attacks:
        records = by_attack[attack.name]
        assert [(r.victim, r.client, r.round, r.seed) for r in records] == [(0, 0, 4, 0), (1, 1, 4, 0), (2, 0, 4, 0)]
        assert all(r.threat_model == replace(attack.needs, labels=True) for r in records)
    for record in result.records:
        scores = (
            record.mse,
            record.mse_to_perturbed,
            record.trained_mse,
            record.baseline_mse,
            record.psnr,
            record.ssim,
        )
        assert all(math.isfinite(score) for score in scores)
        assert record.baseline_mse > 0
        assert record.label_recovered
        assert (record.trained_mse > 0) == (defense.name in ("pixel_noise", "latent"))
    # The truth about a victim is the same for every attack.
    for name in ("label", "trained_mse", "baseline_mse"):
        columns = [[getattr(r, name) for r in records] for records in by_attack.values()]
        assert all(column == columns[0] for column in columns)
    # The no-gradient attacker scores the floor.
    assert [r.mse for r in by_attack["baseline"]] == pytest.approx([r.baseline_mse for r in by_attack["baseline"]])

    assert [picture.victim for picture in result.pictures] == [0, 1]
    for picture, target in zip(result.pictures, world.context.plan.targets, strict=False):
        assert torch.equal(picture.original, world.shards[target.client].floats()[target.indices[0]])
        assert {*picture.rebuilt} == {*by_attack}
        mse = float((picture.rebuilt["adaptive"] - picture.original).square().mean())
        assert mse == pytest.approx(by_attack["adaptive"][picture.victim].mse, rel=1e-4)


def test_a_perfect_inversion_of_an_undefended_client_has_no_error(make_world: MakeWorld) -> None:
    for record in make_world(NoDefense(), [TrainedImages()]).audit().records:
        assert (record.mse, record.mse_to_perturbed, record.trained_mse) == (0.0, 0.0, 0.0)
        assert (record.psnr, record.identified) == (100.0, True)


@dataclass(frozen=True, kw_only=True)
class Echo(Attack):
    """Answers with the images that the client trained on."""

    name: ClassVar[str] = "echo"
    needs: ClassVar[ThreatModel] = ThreatModel(labels=False, trained_images=True)

    def run(
        self,
        observations: Sequence[Observation],
        knowledge: Knowledge,
        earlier: Mapping[str, Sequence[Reconstruction]],
    ) -> list[Reconstruction]:
        return [Reconstruction(o.trained_images, torch.zeros(1, dtype=torch.int64), 0.0) for o in observations]  # type: ignore[arg-type]


def test_scores_are_against_the_original_not_the_perturbed_image(make_world: MakeWorld) -> None:
    for record in make_world(PixelNoise(strength=0.3), [Echo()]).audit().records:
        assert record.mse_to_perturbed == 0.0
        assert record.mse == record.trained_mse > 0.01
        assert record.label_recovered == (record.label == 0)


@pytest.mark.parametrize("attack", [Adaptive, AdaptiveModules])
def test_against_nothing_the_adaptive_attack_is_the_plain_one(attack: type[Adaptive], make_world: MakeWorld) -> None:
    records = make_world(NoDefense(), [INVERSION, attack(inversion=INVERSION)]).audit().records
    plain = [replace(r, attack="", threat_model=ThreatModel()) for r in records if r.attack == INVERSION.name]
    adaptive = [replace(r, attack="", threat_model=ThreatModel()) for r in records if r.attack == attack.name]
    assert len(plain) == 3
    assert adaptive == plain


@pytest.mark.parametrize(
    ("defense", "bounded"),
    [
        (NoDefense(), True),
        (PixelNoise(), True),
        (TopK(keep=0.1), False),
        (Stack(parts=(PixelNoise(), UpdateNoise())), False),
    ],
    ids=["none", "data", "update", "data-and-update"],
)
def test_the_bound_is_for_defences_of_the_data_alone(defense: Defense, bounded: bool, make_world: MakeWorld) -> None:
    records = make_world(defense, [INVERSION, TrainedImages()]).audit().records
    assert {r.attack for r in records} == {INVERSION.name, *([TrainedImages.name] if bounded else [])}


@pytest.mark.parametrize(
    ("defense", "attacks"),
    [
        (PixelNoise(), [INVERSION, Adaptive(inversion=INVERSION)]),
        (Stack(parts=(LATENT, UpdateNoise())), [AdaptiveModules(inversion=INVERSION)]),
    ],
    ids=["data", "data-and-update"],
)
def test_chunks_give_the_same_reconstructions(defense: Defense, attacks: list[Attack], make_world: MakeWorld) -> None:
    whole, single = (make_world(defense, attacks, victims=4, device_chunk=chunk).audit(pictures=4) for chunk in (64, 1))
    assert [(p.victim, *p.rebuilt) for p in whole.pictures] == [(p.victim, *p.rebuilt) for p in single.pictures]
    for one, two in zip(whole.pictures, single.pictures, strict=True):
        assert torch.equal(one.trained, two.trained)
        for name in one.rebuilt:
            torch.testing.assert_close(one.rebuilt[name], two.rebuilt[name], atol=1e-4, rtol=0)
    key = {(r.attack, r.victim): r.mse for r in single.records}
    for record in whole.records:
        assert record.mse == pytest.approx(key[record.attack, record.victim], abs=1e-4)


def test_an_audit_is_a_function_of_its_seed_and_round(make_world: MakeWorld) -> None:
    world = make_world(PixelNoise(), [INVERSION])
    first = world.audit()
    torch.rand(3)
    assert world.audit().records == first.records
    later = world.audit(state=replace(start(world.federation), round=1)).records
    # Another round, other noise.
    assert not {r.trained_mse for r in later} & {r.trained_mse for r in first.records}


def test_an_audit_leaves_the_server_as_it_was(make_world: MakeWorld) -> None:
    world = make_world(UpdateNoise(), [INVERSION], local_steps=2)
    state = start(world.federation)
    before = {name: w.clone() for name, w in state.weights.items()}
    world.audit(state=state)
    assert all(torch.equal(state.weights[name], w) for name, w in before.items())


def test_unequal_batches_are_matched_one_to_one(make_world: MakeWorld) -> None:
    records = make_world(NoDefense(), [TrainedImages()], victims=6, batch_size=3).audit().records
    assert [r.victim for r in records] == list(range(6))
    assert [r.client for r in records] == [0, 0, 0, 1, 1, 1]
    assert all(r.mse == 0.0 and r.label_recovered for r in records)


# The truth stays out of the attack


def tensors_in(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for part in value.values() for t in tensors_in(part)]
    if isinstance(value, list | tuple):
        return [t for part in value for t in tensors_in(part)]
    if is_dataclass(value):
        return [t for field in fields(value) for t in tensors_in(getattr(value, field.name))]
    return []


@pytest.mark.parametrize("spy", [Spy(), AllSeeingSpy()], ids=lambda s: s.name)
def test_no_attack_is_handed_an_original(spy: Spy, make_world: MakeWorld) -> None:
    world = make_world(PixelNoise(), [Baseline(), INVERSION, spy])
    world.audit()
    ((observations, knowledge, earlier),) = type(spy).handed
    private = torch.cat([shard.floats() for shard in world.shards]).flatten(1)
    handed = tensors_in((observations, knowledge, earlier))
    images = [t for t in handed if t.shape[-3:] == (1, 12, 12)]
    assert images
    for image in images:
        scaled = image.float() / 255 if image.dtype == torch.uint8 else image
        distance = torch.cdist(scaled.reshape(-1, 144), private)
        assert float(distance.min()) > 0.1
    assert (observations[0].trained_images is not None) == spy.needs.trained_images
    assert (knowledge.public is not None) == spy.needs.auxiliary_data
    assert bool(knowledge.preparations) == spy.needs.defense_algorithm


@pytest.mark.parametrize("granted", [True, False])
def test_labels_are_handed_over_only_where_granted(granted: bool, make_world: MakeWorld) -> None:
    """Breaching's FedAvg hands the true labels over with the hyperparameters, whatever the setting says."""
    world = make_world(NoDefense(), [Baseline(), Spy(), INVERSION], labels_known=granted, local_steps=2)
    records = world.audit().records
    ((observations, knowledge, _),) = Spy.handed
    assert knowledge.threat_model.labels == granted
    assert all((o.labels is not None) == granted for o in observations)
    assert {r.threat_model.labels for r in records} == {granted}
    whole_numbers = [t for t in tensors_in((observations, knowledge)) if not t.is_floating_point()]
    assert bool(whole_numbers) == granted
    # Recovered or given, the inversion uses the right ones; the spy says 0 and is marked down for it.
    assert all(r.label_recovered for r in records if r.attack != "spy")
    assert {r.label_recovered == (r.label == 0) for r in records if r.attack == "spy"} == {True}


def test_labels_of_batches_that_are_not_granted_are_an_error(make_world: MakeWorld) -> None:
    with pytest.raises(FedveilError, match="label of one image, this update has 3"):
        make_world(NoDefense(), [INVERSION], batch_size=3, labels_known=False).audit()


def test_the_scorer_judges_by_public_images_alone(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Images] = []

    def spy(public: Images, **options: Any) -> Judge:
        shown.append(public)
        return train_judge(public, **options, epochs=1)

    monkeypatch.setattr(module, "train_judge", spy)
    public, private = blobs(12, 100, side=12), blobs(2, 0, side=12)
    scorer = build_scorer(public, Gallery(private.pixels), classes=2, seed=7, device=CPU)
    assert [images is public for images in shown] == [True]

    original, positions = private.floats(), torch.arange(2)
    batch = VictimBatch(0, 0, positions, original, original, private.labels, positions)
    guess = ClassMeanGuess.from_public(public, classes=2).guess(private.labels)
    records = scorer.score(
        batch, Reconstruction(guess, private.labels, 0.0), attack="baseline", threat_model=ThreatModel()
    )
    assert [r.seed for r in records] == [7, 7]
    assert [r.mse for r in records] == pytest.approx([r.baseline_mse for r in records])
