"""Six small clients and their rounds, on an executor that goes by the book or on one that loses work."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from fedveil.fl.data.images import Images
from fedveil.fl.executor import Executor, Handle, SerialExecutor, Slot
from fedveil.fl.hooks import ClientHooks, Memory, NoHooks, Turn
from fedveil.fl.messages import ClientUpdate
from fedveil.fl.models import ModelSpec
from fedveil.fl.rounds import Client, Federation, RoundReport, ServerState, Simulation
from fedveil.fl.strategies import Strategy
from fedveil.fl.training import LocalTraining

T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result")

SHAPE = (1, 12, 12)
SIZES = (5, 9, 7, 4, 8, 6)


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
