"""Federated averaging as a loop over PyTorch, as a researcher would write it first: the floor of the speed benchmark.

With an argument above 1 as many processes share the cohort: what a second busy core makes of the same work's CPU seconds is
the machine's doing, and no framework's.
"""

from __future__ import annotations

import random
import sys
from multiprocessing import get_context

import torch
from torch import Tensor

from benchmarks.peers.federation import Settings, network, report, shards, train, turns

State = dict[str, Tensor]


class Worker:
    """A process's model and the clients' images."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(1)
        self.settings = settings
        self.clients = shards(settings)
        self.model = network(settings)

    def trained(self, start: State, clients: list[int]) -> tuple[State, int]:
        """Return the sum of examples times weights of clients that trained from ``start``, and that of their examples."""
        total, examples = {name: torch.zeros_like(value) for name, value in start.items()}, 0
        for client in clients:
            pixels, labels = self.clients[client]
            self.model.load_state_dict(start)
            train(self.model, pixels, labels, self.settings)
            for name, value in self.model.state_dict().items():
                total[name] += len(labels) * value
            examples += len(labels)
        return total, examples


_worker: Worker | None = None


def _begin(settings: Settings) -> None:
    global _worker
    _worker = Worker(settings)


def _trained(start: State, clients: list[int]) -> tuple[State, int]:
    assert _worker is not None
    return _worker.trained(start, clients)


def main(processes: int) -> None:
    settings = Settings.given()
    chance = random.Random(0)
    own = Worker(settings)
    pool = get_context("spawn").Pool(processes, _begin, (settings,)) if processes > 1 else None
    state = own.model.state_dict()
    for _ in turns():
        state = {name: value.clone() for name, value in state.items()}
        cohort = chance.sample(range(settings.clients), settings.cohort)
        if pool is None:
            parts = [own.trained(state, cohort)]
        else:
            parts = pool.starmap(_trained, [(state, cohort[k::processes]) for k in range(processes)])
        examples = sum(count for _, count in parts)
        state = {name: sum(total[name] for total, _ in parts) / examples for name in state}
    if pool is not None:
        pool.terminate()
    own.model.load_state_dict(state)
    report(own.model)


if __name__ == "__main__":
    main(int(sys.argv.pop(1)))
