"""What a worker slot does with the memory that training frees."""

from __future__ import annotations

import platform
import resource
from itertools import pairwise

import pytest
import torch

from fedveil.fl.data.images import Images
from fedveil.fl.executor import Slot
from fedveil.fl.hooks import NoHooks
from fedveil.fl.models import ModelSpec
from fedveil.fl.rounds import Client, Federation, Simulation
from fedveil.fl.strategies import FedAvg
from fedveil.fl.training import LocalTraining
from fedveil.orchestrator.cluster.executor import RayExecutor


def faults(slot: Slot, item: int) -> int:
    """Return the pages that the kernel has made for this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep memory by other rules")
def test_a_slot_does_not_fetch_the_memory_of_a_step_anew_each_time(ray_cluster: None) -> None:
    pixels = torch.zeros(84, 3, 32, 32, dtype=torch.uint8)
    with RayExecutor(1) as slots:
        clients = tuple(
            Client(
                number,
                len(pixels),
                slots.broadcast(Images(pixels, torch.zeros(len(pixels), dtype=torch.int64))),
                slots.broadcast(NoHooks()),
            )
            for number in range(10)
        )
        spec = ModelSpec("convnet", (3, 32, 32), 2, width=16)
        training = LocalTraining(FedAvg.local_kind, 1, 10, 0.1)
        simulation = Simulation(Federation(spec, clients, FedAvg(), training, 10, 10, 0), slots)
        made = []
        for _ in range(6):
            simulation.round()
            made += slots.map(faults, [0])
    # As Ray starts a process, it is thousands in each round. Other threads have a few of their own.
    assert min(b - a for a, b in pairwise(made)) < 500
