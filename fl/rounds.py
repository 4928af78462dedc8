"""The federated round: a cohort is drawn, its clients train, the strategy folds their updates into new weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.executor import Executor, Handle, Slot
from fedveil.fl.hooks import ClientHooks, Memory, NoHooks
from fedveil.fl.metrics import accuracy, macro_auc
from fedveil.fl.models import ModelSpec, init_model
from fedveil.fl.partial_sum import PartialSum
from fedveil.fl.seeding import torch_stream
from fedveil.fl.strategies import Strategy
from fedveil.fl.training import LocalTraining, Weights, local_update, predict
from fedveil.fl.trust import Due, Rejection, Trust, listed


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
        client_chunks: into how many pieces a round's cohort is cut. A chunk is the unit of work and of partial summing, so
            it is part of the result: any number of workers up to it gives the same bits.
        seed: of the trial.
        learning_rate_decay: factor on the clients' learning rate from one round to the next.
        public: images that clients train on beside their own, where they do (`LocalTraining.replay`).
        trust: what updates have to be like to be taken in, and how many of a round have to be.
    """

    model: ModelSpec
    clients: tuple[Client, ...]
    strategy: Strategy
    training: LocalTraining
    cohort: int
    client_chunks: int
    seed: int
    learning_rate_decay: float = 1.0
    public: Handle[Images] | None = None
    trust: Trust = field(default_factory=Trust)

    def training_at(self, round_number: int) -> LocalTraining:
        """How clients train in a round: the learning rate is multiplied by ``learning_rate_decay`` after every round."""
        rate = self.training.learning_rate * self.learning_rate_decay**round_number
        return replace(self.training, learning_rate=rate)


@dataclass(frozen=True)
class ServerState:
    """What a federation carries from round to round, and all that a checkpoint needs.

    Attributes:
        round: number of the next round.
        weights: parameters and floating-point buffers by name, on the CPU.
        optimizer: the strategy's own tensors.
        memories: by client, what its defence kept of its last turn. A simulation holds it beside the server's own; no
            attacker sees it.
    """

    round: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    memories: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    @classmethod
    def initial(cls, federation: Federation, weights: dict[str, Tensor] | None = None) -> ServerState:
        """Return the state before round 0, with these weights; None for the model's seeded initial ones."""
        if weights is None:
            weights = init_model(federation.model, federation.seed)
        return cls(round=0, weights=weights, optimizer=federation.strategy.init(weights))


@dataclass(frozen=True)
class RoundReport:
    """What one round cost and gave.

    Attributes:
        loss: mean training loss over the examples of the clients whose updates were accepted.
        failed_clients: clients whose turn was lost with a worker and had to be run again.
        update_bytes: mean bytes that one of those clients sent (see `ClientUpdate.nbytes`).
        rejections: the updates that could not be trusted, in the clients' order.
    """

    loss: float
    failed_clients: int
    update_bytes: float
    rejections: tuple[Rejection, ...] = ()


@dataclass(frozen=True)
class Exposure:
    """How often a client's images were drawn from.

    Attributes:
        rate: share of its shard that a step draws on average.
        steps: so many, over all rounds in which the client took part.
    """

    rate: float
    steps: int


@dataclass(frozen=True)
class Utility:
    """Test-time scores. Each client sees the test images through its own defence; the scores are client means.

    Attributes:
        accuracy: share of right answers.
        auc: macro AUC by MedMNIST's definition.
    """

    accuracy: float
    auc: float


class Simulation:
    """A federated run: ``round()`` runs the next round and leaves the server's new state in ``state``.

    Args:
        federation: the run.
        executor: where clients run; the result is the same for all executors, bit for bit on CPUs with the same
            number of threads.
        state: go on from here; None begins before round 0.
    """

    def __init__(self, federation: Federation, executor: Executor, state: ServerState | None = None) -> None:
        self.federation = federation
        self.state = ServerState.initial(federation) if state is None else state
        self._executor = executor
        self._shared = executor.broadcast(federation)

    def round(self) -> RoundReport:
        """Run one round. It goes on without the updates that cannot be trusted.

        Raises:
            FedveilError: too few updates can be trusted, or the training diverged: the loss or a new weight is not finite.
        """
        federation, state = self.federation, self.state
        cohort = draw_cohort(federation, state.round)
        chunks = client_chunks(cohort, federation.client_chunks)
        shares = [_Share(numbers, {n: state.memories[n] for n in numbers if n in state.memories}) for numbers in chunks]
        lost: list[int] = []
        sums = self._executor.map(
            _train_clients,
            shares,
            shared=(self._shared, state.weights, state.round),
            on_lost=lambda share: lost.extend(share.numbers),
        )
        total = PartialSum.of(sums)
        federation.trust.check(state.round, len(cohort), total.rejections)
        if not math.isfinite(total.loss):
            raise FedveilError(f"round {state.round}: the training loss is {total.loss}; lower fl.learning_rate")
        weights, optimizer = self._step(total)
        # The loss is measured before each step, so it does not tell of the last one.
        broken = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
        if broken:
            raise FedveilError(
                f"round {state.round}: {broken[0]} is not finite; lower fl.learning_rate, or set fl.max_update_norm"
            )
        memories = {**state.memories, **{client: dict(memory) for client, memory in total.memories.items()}}
        self.state = ServerState(state.round + 1, weights, optimizer, memories)
        return RoundReport(total.loss, len(set(lost)), total.bytes / total.clients, total.rejections)

    def _step(self, total: PartialSum) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        state, rejections = self.state, total.rejections
        try:
            return self.federation.strategy.step(state.weights, state.optimizer, total.totals, total.updates)
        except FedveilError as error:
            # The rule had enough clients before some were turned away.
            without = f" without {len(rejections)} rejected update(s), {listed(rejections)}" if rejections else ""
            raise FedveilError(f"round {state.round}{without}: {error}") from error

    def evaluate(self, images: Handle[Images]) -> Utility:
        """Score the global model on all ``images`` behind every client's own defence; return the mean over clients."""
        scores = self._executor.map(
            _score_client, self.federation.clients, shared=(self._shared, self.state.weights, self.state.round, images)
        )
        return Utility(sum(s.accuracy for s in scores) / len(scores), sum(s.auc for s in scores) / len(scores))

    def evaluate_clean(self, images: Handle[Images]) -> Utility:
        """Score the global model on untouched ``images``."""
        return self._executor.map(
            _score_client, [None], shared=(self._shared, self.state.weights, self.state.round, images)
        )[0]

    def evaluate_quickly(self, images: Images) -> float:
        """Accuracy over one pass of ``images``, each client answering for every K-th one: for curves over rounds."""
        clients = self.federation.clients[: max(1, len(images))]
        parts = [images.take(torch.arange(k, len(images), len(clients))) for k in range(len(clients))]
        scores = self._executor.map(
            _score_client_on,
            list(zip(clients, parts, strict=True)),
            shared=(self._shared, self.state.weights, self.state.round),
        )
        return sum(s.accuracy * len(part) for s, part in zip(scores, parts, strict=True)) / len(images)


def draw_cohort(federation: Federation, round_number: int) -> list[int]:
    """Return the clients of a round, ascending, drawn without replacement from the round's own stream."""
    stream = torch_stream(federation.seed, "round", round_number, "cohort")
    return sorted(torch.randperm(len(federation.clients), generator=stream)[: federation.cohort].tolist())


def exposures(federation: Federation, rounds: int) -> list[Exposure]:
    """Return how often each client's images are drawn from in the first so many rounds."""
    turns = [0] * len(federation.clients)
    for number in range(rounds):
        for client in draw_cohort(federation, number):
            turns[client] += 1
    training = federation.training
    return [
        Exposure(training.rate_on(client.examples), turns[client.number] * training.steps_on(client.examples))
        for client in federation.clients
    ]


def client_chunks(cohort: Sequence[int], count: int) -> list[tuple[int, ...]]:
    """Cut a cohort into at most ``count`` contiguous pieces whose sizes differ by at most one."""
    pieces = min(count, len(cohort))
    bounds = [len(cohort) * i // pieces for i in range(pieces + 1)]
    return [tuple(cohort[a:b]) for a, b in pairwise(bounds)]


@dataclass(frozen=True)
class _Share:
    """Some of a round's clients, and what those of them that keep something kept, which nobody is shown."""

    numbers: tuple[int, ...]
    memories: Mapping[int, Memory]

    def __repr__(self) -> str:
        return f"client(s) {', '.join(map(str, self.numbers))}"


def _train_clients(
    slot: Slot, share: _Share, federation: Federation, weights: Weights, round_number: int
) -> PartialSum:
    """Train a chunk of clients one after another on one slot and sum their updates in order."""
    model = slot.model(federation.model)
    training = federation.training_at(round_number)
    public = None if federation.public is None else federation.public.get()
    due = Due.of(model, weights, training.kind, federation.trust)
    parts: list[PartialSum] = []
    for number in share.numbers:
        client = federation.clients[number]
        stream = torch_stream(federation.seed, "round", round_number, "client", number)
        result = local_update(
            model,
            weights,
            client.shard.get(),
            client.hooks.get(),
            training,
            stream,
            public=public,
            memory=share.memories.get(number),
        )
        update = result.update
        fault = due.fault(update, shard=client.examples)
        if fault is None:
            own = PartialSum.accepted(
                update,
                result.loss,
                single=federation.strategy.needs_single_updates,
                memories={number: result.memory} if result.memory else {},
            )
        else:
            own = PartialSum(rejections=(Rejection(number, fault),))
        # One running sum, not one update per client, is kept in memory.
        parts = [PartialSum.of([*parts, own])]
    return parts[0]


def _score_client(
    slot: Slot, client: Client | None, federation: Federation, weights: Weights, round_number: int, images: Images
) -> Utility:
    hooks = NoHooks() if client is None else client.hooks.get()
    stream = torch_stream(federation.seed, "test", round_number, "client", -1 if client is None else client.number)
    probabilities = predict(slot.model(federation.model), weights, images, hooks, stream)
    return Utility(accuracy(probabilities, images.labels), macro_auc(probabilities, images.labels))


def _score_client_on(
    slot: Slot, part: tuple[Client, Images], federation: Federation, weights: Weights, round_number: int
) -> Utility:
    client, images = part
    return _score_client(slot, client, federation, weights, round_number, images)
