import io
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.executor import Executor, Handle, SerialExecutor, Slot
from fedveil.fl.hooks import ClientHooks, Memory, NoHooks, Turn
from fedveil.fl.messages import ClientUpdate
from fedveil.fl.metrics import accuracy, macro_auc
from fedveil.fl.models import ModelSpec, build_model, init_model
from fedveil.fl.optimizers import Adam
from fedveil.fl.rounds import Client, Federation, RoundReport, ServerState, Simulation, client_chunks, draw_cohort
from fedveil.fl.seeding import torch_stream
from fedveil.fl.strategies import FedAdam, FedAvg, FedProx, FedSGD, Krum, Median, Strategy, TrimmedMean
from fedveil.fl.training import LocalTraining, local_update, predict

torch.set_num_threads(1)

T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result")

SHAPE = (1, 12, 12)
SIZES = (5, 9, 7, 4, 8, 6)
STRATEGIES: list[Strategy] = [
    FedAvg(),
    FedSGD(server_lr=0.5),
    FedProx(mu=0.3),
    FedAdam(),
    Median(),
    TrimmedMean(trim=0.2),
    Krum(byzantine=1, keep=2),
]


class Locked(Handle[Any]):
    """A handle that nobody may open."""

    def get(self) -> Any:
        raise AssertionError("this client does not take part")


class Noise(NoHooks):
    """A defence that uses the client's stream for data and for the update."""

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        return (x + 0.1 * torch.randn(x.shape, generator=stream)).clamp(0, 1)

    def update(self, update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
        noisy = {n: t + 1e-3 * torch.randn(t.shape, generator=stream) for n, t in update.tensors.items()}
        return replace(update, tensors=noisy)


class Delayed(NoHooks):
    """Sends half of an update, and the other half with the next one."""

    def carry(self, update: ClientUpdate, turn: Turn, stream: torch.Generator) -> tuple[ClientUpdate, Memory]:
        half = {name: tensor / 2 for name, tensor in update.tensors.items()}
        due = {name: tensor + turn.memory.get(name, 0) for name, tensor in half.items()}
        return replace(update, tensors=due), half


class ShufflingExecutor:
    """Runs items in a random order, each on a slot of its own or on a used one, and replays some whose slot "died"."""

    def __init__(self, seed: int, deaths: int = 1) -> None:
        self.chance = random.Random(seed)
        self.deaths = deaths
        self.lost: list[Any] = []
        self.slots = [Slot(torch.device("cpu")) for _ in range(2)]

    def broadcast(self, value: T) -> Handle[T]:
        return Handle(value)

    def map(
        self,
        task: Callable[..., Result],
        items: Sequence[Item],
        *,
        shared: Sequence[object] = (),
        on_lost: Callable[[Item], None] | None = None,
    ) -> list[Result]:
        values = [value.get() if isinstance(value, Handle) else value for value in shared]
        order = list(range(len(items)))
        self.chance.shuffle(order)
        dying = order[0] if on_lost is not None and items else None
        results: dict[int, Result] = {}
        for index in order:
            if index == dying and on_lost is not None:
                for _ in range(self.deaths):
                    task(Slot(torch.device("cpu")), items[index], *values)
                    self.lost.append(items[index])
                    on_lost(items[index])
            results[index] = task(self.chance.choice(self.slots), items[index], *values)
        return [results[index] for index in range(len(items))]


def rounds(
    federation: Federation, count: int, *, executor: Executor | None = None, state: ServerState | None = None
) -> tuple[ServerState, list[RoundReport]]:
    simulation = Simulation(federation, executor or SerialExecutor(), state)
    reports = [simulation.round() for _ in range(count)]
    return simulation.state, reports


def images(count: int, seed: int) -> Images:
    stream = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, *SHAPE), generator=stream, dtype=torch.uint8)
    return Images(pixels, torch.randint(3, (count,), generator=stream))


def federate(
    strategy: Strategy,
    *,
    hooks: Sequence[ClientHooks] | None = None,
    norm: str = "group",
    cohort: int = len(SIZES),
    chunks: int = 3,
    learning_rate: float = 0.1,
    batch_size: int = 4,
    seed: int = 0,
) -> Federation:
    acting = hooks or [NoHooks()] * len(SIZES)
    return Federation(
        model=ModelSpec("convnet", SHAPE, classes=3, norm=norm, width=4),
        clients=tuple(
            Client(k, size, Handle(images(size, k)), Handle(own))
            for k, (size, own) in enumerate(zip(SIZES, acting, strict=False))
        ),
        strategy=strategy,
        training=LocalTraining(strategy.local_kind, 1, batch_size, learning_rate, strategy.proximal),
        cohort=cohort,
        client_chunks=chunks,
        seed=seed,
    )


def same_bits(left: ServerState, right: ServerState) -> bool:
    assert left.memories.keys() == right.memories.keys()
    pairs = [(left.weights, right.weights), (left.optimizer, right.optimizer)]
    pairs += [(left.memories[client], right.memories[client]) for client in left.memories]
    return left.round == right.round and all(
        a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a) for a, b in pairs
    )


def test_a_run_starts_from_the_models_seeded_weights() -> None:
    federation = federate(FedAdam(), seed=4)
    state = ServerState.initial(federation)
    assert state.round == 0
    assert all(torch.equal(state.weights[n], t) for n, t in init_model(federation.model, 4).items())
    assert state.optimizer.keys() == FedAdam().init(state.weights).keys()


def test_a_fedsgd_round_is_one_step_of_gradient_descent_on_all_images() -> None:
    federation = federate(FedSGD(server_lr=0.5), batch_size=64)
    state, [report] = rounds(federation, 1)
    model = build_model(federation.model, federation.seed)
    shards = [client.shard.get() for client in federation.clients]
    x, y = torch.cat([s.floats() for s in shards]), torch.cat([s.labels for s in shards])
    loss = F.cross_entropy(model(x), y)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(state.weights[name], parameter.detach() - 0.5 * gradient, atol=1e-6, rtol=1e-5)
    assert state.round == 1
    assert report.loss == pytest.approx(loss.item(), rel=1e-5)


def test_a_fedavg_round_is_the_mean_of_the_clients_weights_by_examples() -> None:
    federation = federate(FedAvg(), norm="batch")
    before = ServerState.initial(federation)
    state, [report] = rounds(federation, 1)
    model = build_model(federation.model)
    results = [
        local_update(
            model,
            before.weights,
            images(size, k),
            NoHooks(),
            federation.training,
            torch_stream(0, "round", 0, "client", k),
        )
        for k, size in enumerate(SIZES)
    ]
    for name, old in before.weights.items():
        changes = [{**r.update.tensors, **r.update.buffers}[name].double() for r in results]
        mean = sum(size * (old + change) for size, change in zip(SIZES, changes, strict=True)) / sum(SIZES)
        torch.testing.assert_close(state.weights[name].double(), mean, atol=1e-6, rtol=1e-5)
    moved = "body.0.1.running_var"
    assert not torch.equal(state.weights[moved], before.weights[moved]), "BatchNorm statistics take part"
    assert report.loss == pytest.approx(sum(n * r.loss for n, r in zip(SIZES, results, strict=True)) / sum(SIZES))
    assert report.update_bytes == pytest.approx(sum(r.update.nbytes() for r in results) / len(SIZES))
    assert report.failed_clients == 0


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_neither_order_nor_slot_nor_replay_changes_a_bit(strategy: Strategy) -> None:
    federation = federate(strategy, hooks=[Noise(), Delayed()] * len(SIZES), norm="batch", cohort=5)
    serial, _ = rounds(federation, 2)
    assert not torch.equal(serial.weights["head.weight"], ServerState.initial(federation).weights["head.weight"])
    for seed in range(3):
        executor = ShufflingExecutor(seed)
        state, reports = rounds(federation, 2, executor=executor)
        assert same_bits(state, serial)
        assert [r.failed_clients for r in reports] == [len(share.numbers) for share in executor.lost]


def test_a_client_that_is_lost_twice_counts_once() -> None:
    federation = federate(FedAvg(), chunks=6)
    _, [report] = rounds(federation, 1, executor=ShufflingExecutor(0, deaths=2))
    assert report.failed_clients == 1


def test_the_cut_into_chunks_changes_rounding_at_most() -> None:
    states = [rounds(federate(FedAvg(), chunks=chunks), 1)[0] for chunks in (1, 2, 6)]
    for state in states[1:]:
        for name, tensor in states[0].weights.items():
            torch.testing.assert_close(state.weights[name], tensor, atol=1e-6, rtol=1e-5)


@given(st.lists(st.integers(0, 99), min_size=1, max_size=40), st.integers(1, 50))
def test_a_cohort_is_cut_in_order_into_even_pieces(cohort: list[int], count: int) -> None:
    pieces = client_chunks(cohort, count)
    assert [client for piece in pieces for client in piece] == cohort
    assert len(pieces) == min(count, len(cohort))
    sizes = [len(piece) for piece in pieces]
    assert max(sizes) - min(sizes) <= 1


def test_a_cut_worked_by_hand() -> None:
    assert client_chunks([0, 1, 2, 3, 4, 5, 6], 3) == [(0, 1), (2, 3), (4, 5, 6)]


def test_cohorts_are_drawn_evenly_and_anew_for_each_round() -> None:
    federation = federate(FedAvg(), cohort=2)
    drawn = [draw_cohort(federation, number) for number in range(600)]
    assert all(len(cohort) == 2 and cohort == sorted(set(cohort)) for cohort in drawn)
    assert drawn == [draw_cohort(federation, number) for number in range(600)]
    assert drawn != [draw_cohort(replace(federation, seed=1), number) for number in range(600)]
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=len(SIZES))
    # Binomial(600, 1/3): mean 200, standard deviation 11.5.
    assert counts.min() > 150
    assert counts.max() < 250


def test_the_whole_federation_is_a_cohort_too() -> None:
    assert draw_cohort(federate(FedAvg()), 3) == list(range(len(SIZES)))


def test_only_the_cohort_trains() -> None:
    federation = federate(FedAvg(), cohort=2)
    cohort = draw_cohort(federation, 0)
    locked: Handle[Any] = Locked(None)
    clients = tuple(
        c if c.number in cohort else Client(c.number, c.examples, locked, locked) for c in federation.clients
    )
    state, _ = rounds(replace(federation, clients=clients), 1)
    assert same_bits(state, rounds(federation, 1)[0])


@pytest.mark.parametrize("strategy", [FedAvg(), FedAdam(), FedSGD()], ids=repr)
def test_a_run_goes_on_from_a_saved_state_as_if_never_stopped(strategy: Strategy) -> None:
    federation = federate(strategy, hooks=[Noise(), Delayed()] * len(SIZES), norm="batch", cohort=4)
    straight, _ = rounds(federation, 4)
    half, _ = rounds(federation, 2)
    disk = io.BytesIO()
    torch.save(vars(half), disk)
    disk.seek(0)
    resumed = ServerState(**torch.load(disk, weights_only=True))
    assert same_bits(rounds(federation, 2, state=resumed)[0], straight)


def test_what_a_client_keeps_is_there_in_its_next_turn_and_only_there() -> None:
    federation = federate(FedSGD(server_lr=1e-9), hooks=[Delayed()] * len(SIZES), cohort=2, batch_size=64)
    simulation = Simulation(federation, SerialExecutor())
    assert simulation.state.memories == {}
    seen: set[int] = set()
    for number in range(6):
        before = simulation.state.memories
        simulation.round()
        after = simulation.state.memories
        seen |= set(draw_cohort(federation, number))
        assert set(after) == seen
        rest = set(before) - set(draw_cohort(federation, number))
        assert all(after[client] is before[client] for client in rest)
    # With the server's weights where they were, half of the same gradient is kept each time: all of it is sent.
    client = federation.clients[0]
    stream = torch_stream(0, "any")
    slot = build_model(federation.model)
    arguments = (slot, simulation.state.weights, client.shard.get())
    first = local_update(*arguments, Delayed(), federation.training, stream)
    second = local_update(*arguments, Delayed(), federation.training, stream, memory=first.memory)
    plain = local_update(*arguments, NoHooks(), federation.training, stream)
    for name, tensor in plain.update.tensors.items():
        torch.testing.assert_close(first.update.tensors[name] * 2, tensor)
        torch.testing.assert_close(second.update.tensors[name], tensor)


def test_a_client_whose_update_is_rejected_keeps_what_it_had() -> None:
    class Broken(Delayed):
        def carry(self, update: ClientUpdate, turn: Turn, stream: torch.Generator) -> tuple[ClientUpdate, Memory]:
            sent, memory = super().carry(update, turn, stream)
            return (replace(sent, examples=0), memory) if turn.memory else (sent, memory)

    federation = federate(FedAvg(), hooks=[Broken(), *[NoHooks()] * (len(SIZES) - 1)])
    once, _ = rounds(federation, 1)
    twice, [report] = rounds(federation, 1, state=once)
    assert [rejection.client for rejection in report.rejections] == [0]
    assert set(twice.memories) == {0}
    assert twice.memories[0] is once.memories[0]


def test_the_learning_rate_decays_from_round_to_round() -> None:
    federation = replace(federate(FedAvg(), batch_size=64, learning_rate=0.4), learning_rate_decay=0.5)
    assert [federation.training_at(number).learning_rate for number in range(3)] == [0.4, 0.2, 0.1]
    first = replace(ServerState.initial(federation), round=0)
    moved = []
    for number in (0, 2):
        # One step from the same weights on all of the images: the change is the learning rate times the gradient.
        after, _ = rounds(federation, 1, state=replace(first, round=number))
        moved.append(after.weights["head.weight"] - first.weights["head.weight"])
    torch.testing.assert_close(moved[1] * 4, moved[0], atol=1e-5, rtol=1e-3)


def test_public_images_reach_every_client_behind_one_handle() -> None:
    class Counted(Handle[Any]):
        opened = 0

        def get(self) -> Any:
            self.opened += 1
            return super().get()

    federation = federate(FedAvg())
    assert federation.public is None
    training = replace(
        federation.training,
        epochs=None,
        steps=3,
        optimizer=Adam(),
        replay=0.5,
        augmentation=("flip",),
        learning_rate=0.01,
    )
    mixed = replace(federation, training=training, public=Counted(images(4, seed=50)))
    state, _ = rounds(mixed, 1)
    assert mixed.public is not None
    assert mixed.public.opened == 3, "once a chunk of clients"  # type: ignore[attr-defined]
    others = replace(mixed, public=Handle(images(4, seed=51)))
    assert not same_bits(rounds(others, 1)[0], state)
    assert same_bits(rounds(mixed, 1, executor=ShufflingExecutor(2))[0], state)
    # By hand, one client after another.
    after = ServerState.initial(mixed).weights
    total = {name: torch.zeros_like(weight) for name, weight in after.items()}
    for client in mixed.clients:
        stream, shard = torch_stream(mixed.seed, "round", 0, "client", client.number), client.shard.get()
        result = local_update(
            build_model(mixed.model), after, shard, NoHooks(), training, stream, public=images(4, seed=50)
        )
        for name, change in result.update.tensors.items():
            total[name] += change * len(shard) / sum(SIZES)
    for name, weight in state.weights.items():
        torch.testing.assert_close(weight, after[name] + total[name], atol=1e-6, rtol=1e-5)


def test_a_round_leaves_the_state_before_it_alone() -> None:
    federation = federate(FedAdam(), norm="batch")
    before, _ = rounds(federation, 1)
    copy = ServerState(
        before.round,
        {n: t.clone() for n, t in before.weights.items()},
        {n: t.clone() for n, t in before.optimizer.items()},
    )
    rounds(federation, 1, state=before)
    assert same_bits(before, copy)


@pytest.mark.parametrize("strategy", [FedAvg(), Median(), Krum()], ids=repr)
def test_training_that_diverges_is_an_error_that_says_what_to_do(strategy: Strategy) -> None:
    simulation = Simulation(federate(strategy, learning_rate=1e30), SerialExecutor())
    before = simulation.state
    said = r"round 0: \d of 6 clients' updates can be trusted, and fl\.quorum 0\.5 .* diverges, lower fl\.learning_rate"
    with pytest.raises(FedveilError, match=said):
        simulation.round()
    assert simulation.state is before, "a round that fails leaves the state as it was"


class Loud(NoHooks):
    """What each client sends can be trusted, and a step that the server makes of it is too long."""

    def update(self, update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
        return replace(update, tensors={**update.tensors, "head.bias": torch.full((3,), 1e16)})


def test_weights_that_are_not_finite_are_an_error_although_loss_and_updates_are() -> None:
    simulation = Simulation(federate(FedAvg(server_lr=1e30), hooks=[Loud()] * len(SIZES)), SerialExecutor())
    said = r"round 0: head\.bias is not finite; lower fl\.learning_rate, or set fl\.max_update_norm"
    with pytest.raises(FedveilError, match=said):
        simulation.round()


class Hopeless(NoHooks):
    """What is sent is fine, and yet nothing was learnt."""

    def loss(self, loss: Tensor, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        return loss + torch.inf


def test_a_loss_that_is_not_finite_is_an_error_although_updates_are() -> None:
    simulation = Simulation(federate(FedAvg(), hooks=[Hopeless()] * len(SIZES)), SerialExecutor())
    with pytest.raises(FedveilError, match=r"round 0: the training loss is inf; lower fl\.learning_rate"):
        simulation.round()


class Negated(NoHooks):
    """Answers with the class that the model thinks least likely."""

    def output(self, logits: Tensor) -> Tensor:
        return -logits


class Dark(NoHooks):
    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        return x / 4


def probabilities(federation: Federation, test: Images, hooks: ClientHooks) -> Tensor:
    model: nn.Module = build_model(federation.model)
    return predict(model, ServerState.initial(federation).weights, test, hooks, torch.Generator())


@pytest.mark.parametrize("executor", [SerialExecutor(), ShufflingExecutor(1)], ids=["serial", "shuffling"])
def test_utility_is_the_mean_over_clients_each_behind_its_own_defence(executor: Executor) -> None:
    hooks = [NoHooks(), Negated(), Dark()]
    federation = federate(FedAvg(), hooks=hooks, cohort=3)
    simulation = Simulation(federation, executor)
    test = images(40, 77)
    found = simulation.evaluate(executor.broadcast(test))
    scores = [probabilities(federation, test, own) for own in hooks]
    assert found.accuracy == pytest.approx(sum(accuracy(s, test.labels) for s in scores) / 3)
    assert found.auc == pytest.approx(sum(macro_auc(s, test.labels) for s in scores) / 3)
    clean = simulation.evaluate_clean(executor.broadcast(test))
    assert clean.accuracy == accuracy(scores[0], test.labels)
    assert clean.auc == macro_auc(scores[0], test.labels)
    assert found != clean


def test_the_quick_score_gives_each_client_every_kth_image() -> None:
    hooks = [NoHooks(), Negated(), Dark()]
    federation = federate(FedAvg(), hooks=hooks, cohort=3)
    test = images(40, 77)
    right = 0.0
    for k, own in enumerate(hooks):
        part = test.take(torch.arange(k, 40, 3))
        right += accuracy(probabilities(federation, part, own), part.labels) * len(part)
    found = Simulation(federation, SerialExecutor()).evaluate_quickly(test)
    assert found == pytest.approx(right / 40)


def test_the_quick_score_works_with_more_clients_than_images() -> None:
    federation = federate(FedAvg())
    test = images(4, 77)
    found = Simulation(federation, SerialExecutor()).evaluate_quickly(test)
    assert found == pytest.approx(accuracy(probabilities(federation, test, NoHooks()), test.labels))


class Recording(NoHooks):
    def __init__(self) -> None:
        self.drawn: list[float] = []

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        self.drawn.append(torch.rand(1, generator=stream).item())
        return x


def test_test_time_noise_is_fresh_for_each_client_and_round_and_reproducible() -> None:
    hooks = [Recording() for _ in SIZES]
    federation = federate(FedAvg(), hooks=hooks)
    executor = SerialExecutor()
    test = executor.broadcast(images(4, 77))
    for number in (0, 1, 0):
        state = replace(ServerState.initial(federation), round=number)
        Simulation(federation, executor, state).evaluate(test)
    for own in hooks:
        assert own.drawn[0] == own.drawn[2]
    assert len({value for own in hooks for value in own.drawn}) == 2 * len(SIZES)
