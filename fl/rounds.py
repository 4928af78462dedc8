"""The federated round: a cohort is drawn, its clients train, the strategy folds their updates into new weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from fl.data.images import Images
from fl.errors import FedveilError
from fl.executor import Executor, Handle, Slot
from fl.hooks import ClientHooks, NoHooks
from fl.messages import ClientUpdate
from fl.metrics import accuracy, macro_auc
from fl.models import ModelSpec, init_model
from fl.seeding import torch_stream
from fl.strategies import Strategy, Totals
from fl.training import LocalTraining, Weights, local_update, predict


@dataclass(frozen=True)
class Client:
    """A client's place in the federation; its state lives behind handles, never inside a worker.

    Attributes:
        number: 0 to clients - 1.
        examples: images in its shard.
        shard: its private images.
        hooks: its prepared defence.
    """

    number: int
    examples: int
    shard: Handle[Images]
    hooks: Handle[ClientHooks]


@dataclass(frozen=True)
class Federation:
    """Everything about a federated run that does not change from round to round.

    Attributes:
        model: the classifier that is trained.
        clients: all of them.
        strategy: how updates become weights.
        training: how clients train.
        cohort: how many clients take part in each round.
        shares: into how many pieces a round's cohort is cut. A share is the unit of work and of partial summing, so it
            is part of the result: any number of workers up to it gives the same bits.
        seed: of the trial.
        learning_rate_decay: factor on the clients' learning rate from one round to the next.
    """

    model: ModelSpec
    clients: tuple[Client, ...]
    strategy: Strategy
    training: LocalTraining
    cohort: int
    shares: int
    seed: int
    learning_rate_decay: float = 1.0

    def training_at(self, round_number: int) -> LocalTraining:
        """How clients train in a round: the learning rate is multiplied by ``learning_rate_decay`` after every round."""
        rate = self.training.learning_rate * self.learning_rate_decay**round_number
        return replace(self.training, learning_rate=rate)


@dataclass(frozen=True)
class ServerState:
    """What the server carries from round to round, and all that a checkpoint needs.

    Attributes:
        round: the next round to play.
        weights: parameters and floating-point buffers by name, on the CPU.
        optimizer: the strategy's own tensors.
    """

    round: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundReport:
    """What one round cost and gave.

    Attributes:
        loss: mean training loss over the cohort's examples.
        failed_clients: clients whose turn was lost with a worker and had to be played again.
        update_bytes: mean bytes that one client sent (see `ClientUpdate.nbytes`).
    """

    loss: float
    failed_clients: int
    update_bytes: float


@dataclass(frozen=True)
class _Share:
    federation: Handle[Federation]
    weights: Handle[Weights]
    round: int
    clients: tuple[int, ...]


@dataclass(frozen=True)
class _Played:
    totals: Totals | None
    updates: tuple[ClientUpdate, ...]
    loss_sum: float
    examples: int
    bytes: int


def start(federation: Federation) -> ServerState:
    """Return the state before round 0: the model's seeded initial weights."""
    weights = init_model(federation.model, federation.seed)
    return ServerState(round=0, weights=weights, optimizer=federation.strategy.init(weights))


def _play(slot: Slot, share: _Share) -> _Played:
    """Play the share's clients one after another on one slot and sum their updates in order."""
    federation, weights = share.federation.get(), share.weights.get()
    model = slot.model(federation.model)
    training = federation.training_at(share.round)
    single = federation.strategy.needs_single_updates
    totals: Totals | None = None
    updates: list[ClientUpdate] = []
    loss_sum = 0.0
    examples = size = 0
    for number in share.clients:
        client = federation.clients[number]
        stream = torch_stream(federation.seed, "round", share.round, "client", number)
        result = local_update(model, weights, client.shard.get(), client.hooks.get(), training, stream)
        if single:
            updates.append(result.update)
        else:
            own = Totals.of(result.update)
            totals = own if totals is None else totals + own
        loss_sum += result.loss * result.update.examples
        examples += result.update.examples
        size += result.update.nbytes()
    return _Played(totals, tuple(updates), loss_sum, examples, size)


def draw_cohort(federation: Federation, round_number: int) -> list[int]:
    """Return the clients of a round, ascending, drawn without replacement from the round's own stream."""
    stream = torch_stream(federation.seed, "round", round_number, "cohort")
    return sorted(torch.randperm(len(federation.clients), generator=stream)[: federation.cohort].tolist())


def cut(cohort: Sequence[int], shares: int) -> list[tuple[int, ...]]:
    """Cut a cohort into at most ``shares`` contiguous pieces whose sizes differ by at most one."""
    pieces = min(shares, len(cohort))
    bounds = [len(cohort) * i // pieces for i in range(pieces + 1)]
    return [tuple(cohort[a:b]) for a, b in pairwise(bounds)]


def play_round(
    federation: Federation, shared: Handle[Federation], state: ServerState, executor: Executor
) -> tuple[ServerState, RoundReport]:
    """Play one round and return the server's next state.

    Args:
        federation: the run.
        shared: the same, shared once with all slots.
        state: before the round.
        executor: where clients run; the result is the same for all executors, bit for bit on CPUs with the same
            number of threads.

    Raises:
        FedveilError: the training diverged: the loss or a new weight is not finite.
    """
    cohort = draw_cohort(federation, state.round)
    weights = executor.share(state.weights)
    shares = [_Share(shared, weights, state.round, piece) for piece in cut(cohort, federation.shares)]
    lost: list[int] = []
    played = executor.map(_play, shares, on_lost=lambda share: lost.extend(share.clients))

    loss = sum(p.loss_sum for p in played) / sum(p.examples for p in played)
    if not math.isfinite(loss):
        raise FedveilError(f"round {state.round}: the training loss is {loss}; lower fl.learning_rate")
    totals: Totals | None = None
    for piece in played:
        if piece.totals is not None:
            totals = piece.totals if totals is None else totals + piece.totals
    updates = [update for piece in played for update in piece.updates]
    new_weights, optimizer = federation.strategy.step(state.weights, state.optimizer, totals, updates)
    # The loss is measured before each step, so it does not tell of the last one.
    broken = [name for name, tensor in new_weights.items() if not tensor.isfinite().all()]
    if broken:
        raise FedveilError(f"round {state.round}: {broken[0]} is not finite; lower fl.learning_rate")
    report = RoundReport(loss, len(set(lost)), sum(p.bytes for p in played) / len(cohort))
    return ServerState(state.round + 1, new_weights, optimizer), report


@dataclass(frozen=True)
class Utility:
    """Test-time scores. Each client sees the test images through its own defence; the scores are client means.

    Attributes:
        accuracy: share of right answers.
        auc: macro AUC by MedMNIST's definition.
    """

    accuracy: float
    auc: float


@dataclass(frozen=True)
class _Exam:
    federation: Handle[Federation]
    weights: Handle[Weights]
    test: Handle[Images]
    client: int | None
    round: int


def _sit(slot: Slot, exam: _Exam) -> Utility:
    federation, test = exam.federation.get(), exam.test.get()
    hooks = NoHooks() if exam.client is None else federation.clients[exam.client].hooks.get()
    stream = torch_stream(federation.seed, "test", exam.round, "client", -1 if exam.client is None else exam.client)
    probabilities = predict(slot.model(federation.model), exam.weights.get(), test, hooks, stream)
    return Utility(accuracy(probabilities, test.labels), macro_auc(probabilities, test.labels))


def evaluate(
    federation: Federation,
    shared: Handle[Federation],
    state: ServerState,
    test: Handle[Images],
    executor: Executor,
) -> Utility:
    """Score the global model on the whole test set behind every client's own defence; return the mean over clients."""
    weights = executor.share(state.weights)
    exams = [_Exam(shared, weights, test, client.number, state.round) for client in federation.clients]
    scores = executor.map(_sit, exams)
    return Utility(
        sum(s.accuracy for s in scores) / len(scores),
        sum(s.auc for s in scores) / len(scores),
    )


def evaluate_clean(
    federation: Federation,
    shared: Handle[Federation],
    state: ServerState,
    test: Handle[Images],
    executor: Executor,
) -> Utility:
    """Score the global model on untouched test images."""
    weights = executor.share(state.weights)
    return executor.map(_sit, [_Exam(shared, weights, test, None, state.round)])[0]


def evaluate_quickly(
    federation: Federation, shared: Handle[Federation], state: ServerState, test: Images, executor: Executor
) -> float:
    """Accuracy over one pass of the test set, each client answering for every K-th image: for curves over rounds."""
    weights = executor.share(state.weights)
    clients = federation.clients[: max(1, len(test))]
    parts = [torch.arange(k, len(test), len(clients)) for k in range(len(clients))]
    exams = [
        _Exam(shared, weights, executor.share(test.take(part)), client.number, state.round)
        for client, part in zip(clients, parts, strict=True)
    ]
    scores = executor.map(_sit, exams)
    return sum(s.accuracy * len(part) for s, part in zip(scores, parts, strict=True)) / len(test)
