"""Small tasks for the slots of a Ray pool."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from ray import cloudpickle

from fedveil.fl.executor import Handle, Slot
from fedveil.orchestrator.cluster.executor import RayExecutor
from fedveil.orchestrator.cluster.slot import _unpacked

# The workers cannot import a test module by name.
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]


def own_pid(slot: Slot, item: object) -> int:
    return os.getpid()


def double(slot: Slot, item: int) -> int:
    return 2 * item


def meet(slot: Slot, place: tuple[Path, int]) -> int:
    """Leave a mark and wait for the other's: it only ends if two slots run at the same time."""
    folder, number = place
    (folder / f"{number}").touch()
    while not (folder / f"{1 - number}").exists():
        time.sleep(0.005)
    return os.getpid()


def pids_of_both(pool: RayExecutor, folder: Path) -> set[int]:
    folder.mkdir()
    return set(pool.map(meet, [(folder, 0), (folder, 1)]))


@dataclass(frozen=True)
class Fatal:
    """An item that kills its worker until ``deaths`` marks lie in the folder."""

    folder: Path
    number: int
    deaths: int


def die(slot: Slot, item: Fatal) -> tuple[int, int]:
    marks = list(item.folder.glob(f"{item.number}-*"))
    if len(marks) < item.deaths:
        (item.folder / f"{item.number}-{len(marks)}").touch()
        os._exit(1)
    return item.number, len(marks)


Weights = dict[str, torch.Tensor]


def scaled_sum(slot: Slot, factor: int, weights: Weights, offset: float) -> float:
    return factor * float(weights["w"].sum()) + offset


def nested_sum(slot: Slot, item: tuple[Handle[Weights], int]) -> float:
    return scaled_sum(slot, item[1], item[0].get(), 0.0)


def cached(slot: Slot, item: object) -> int:
    return len(_unpacked)
