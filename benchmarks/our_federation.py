"""Our sides of the benchmark of federated training: the serial executor, and Ray's with one worker or two."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from benchmarks.peers.federation import CLASSES, Settings, network, report, shards, turns
from fedveil.fl.data.images import Images
from fedveil.fl.executor import Executor, SerialExecutor
from fedveil.fl.hooks import NoHooks
from fedveil.fl.models import ModelSpec, init_model
from fedveil.fl.rounds import Client, Federation, ServerState, Simulation
from fedveil.fl.strategies import FedAvg
from fedveil.fl.training import LocalTraining
from fedveil.orchestrator.config.training import FLSection


@contextmanager
def executor(workers: int) -> Iterator[Executor]:
    """Yield Ray's, with so many workers, or without any the serial one."""
    if not workers:
        yield SerialExecutor()
        return
    from fedveil.orchestrator.cluster.connection import connect
    from fedveil.orchestrator.cluster.executor import RayExecutor

    with connect("local", cpus=workers), RayExecutor(workers) as slots:
        yield slots


def federation(settings: Settings, slots: Executor) -> Federation:
    """Return the benchmark's federation as a trial without a defence makes it."""
    return Federation(
        model=ModelSpec("convnet", (3, 32, 32), CLASSES, "group", settings.width),
        clients=tuple(
            Client(number, len(labels), slots.broadcast(Images(pixels, labels)), slots.broadcast(NoHooks()))
            for number, (pixels, labels) in enumerate(shards(settings))
        ),
        strategy=FedAvg(),
        training=LocalTraining(FedAvg.local_kind, settings.epochs, settings.batch_size, settings.learning_rate),
        cohort=settings.cohort,
        client_chunks=FLSection().client_chunks,
        seed=0,
    )


def main(workers: int) -> None:
    torch.set_num_threads(1)
    settings = Settings.given()
    model = network(settings)
    names = init_model(ModelSpec("convnet", (3, 32, 32), CLASSES, "group", settings.width), 0).keys()
    with executor(workers) as slots:
        weights = dict(zip(names, model.state_dict().values(), strict=True))
        shared = federation(settings, slots)
        simulation = Simulation(shared, slots, ServerState.initial(shared, weights))
        for _ in turns():
            simulation.round()
    model.load_state_dict(dict(zip(model.state_dict(), simulation.state.weights.values(), strict=True)))
    report(model)


if __name__ == "__main__":
    main(int(sys.argv.pop(1)))
