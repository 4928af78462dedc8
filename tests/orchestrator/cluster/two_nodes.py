"""Work on two nodes, one of which is killed: run by test_two_nodes.py in a process of its own, which says what it saw.

    python two_nodes.py FOLDER ADDRESS PID

PID is that of the raylet of one node: what Ray has there dies with it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import ray
import torch
from torch import Tensor, nn

from fedveil.fl.executor import SerialExecutor, Slot
from fedveil.orchestrator.cluster.executor import RayExecutor

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]


def where(slot: Slot, item: object) -> str:
    return str(ray.get_runtime_context().get_node_id())


def train(slot: Slot, item: tuple[Path, int]) -> Tensor:
    """A few steps of training, in the midst of which the task waits for the file ``go``."""
    folder, seed = item
    stream = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.1 * torch.randn(weight.shape, generator=stream))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(20):
        if step == 10:
            (folder / f"{seed}-{os.getpid()}").touch()
            while not (folder / "go").exists():
                time.sleep(0.01)
        images = torch.rand(16, 1, 8, 8, generator=stream)
        loss = nn.functional.cross_entropy(model(images), torch.randint(3, (16,), generator=stream))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


class Note:
    """Writes down what it is told."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self, line: str) -> None:
        with self.file.open("a") as lines:
            lines.write(f"{line}\n")


def until(true: Callable[[], Any]) -> None:
    """Wait until something is true.

    Raises:
        TimeoutError: it is not within two minutes.
    """
    deadline = time.monotonic() + 120
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"line {true.__code__.co_firstlineno}")
        time.sleep(0.05)


def main(folder: Path, address: str, raylet: int) -> None:
    """Kill a node while both nodes train; write what came of it to ``seen.json``."""
    ray.init(address=address, log_to_driver=False)
    until(lambda: sum(node["Alive"] for node in ray.nodes()) == 2)  # a node that runs may not have registered yet
    lost: list[int] = []
    note = Note(folder / "said")
    items = [(folder, seed) for seed in range(4)]

    def kill() -> None:
        """One item waits on each node; of those that are replayed the first waits until nobody awaits the lost worker."""
        until(lambda: len(list(folder.glob("?-*"))) == 2)
        os.kill(raylet, signal.SIGKILL)
        until(note.file.exists)
        (folder / "go").touch()

    with RayExecutor(2) as pool:
        until(lambda: len(set(pool.map(where, range(8)))) == 2)
        pool.start_timeout, pool.say = 3, note
        killer = threading.Thread(target=kill)
        killer.start()
        found = pool.map(train, items, on_lost=lambda item: lost.append(item[1]))
        killer.join()
        again = pool.map(train, items)
    serial = SerialExecutor().map(train, items)
    seen = {
        "same bits": [torch.equal(one, other) for one, other in zip(found, serial, strict=True)],
        "same bits afterwards": [torch.equal(one, other) for one, other in zip(again, serial, strict=True)],
        "lost": lost,
        "said": note.file.read_text().splitlines(),
    }
    (folder / "seen.json").write_text(json.dumps(seen))
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
