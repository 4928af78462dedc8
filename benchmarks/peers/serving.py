"""How a side of the speed benchmark is asked for a measurement: a process per environment, a line of JSON each way.

All sides are alive at once and wait for their turn, so that their measurements can alternate. Python and PyTorch only.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.peers.cells import Network

SHAPE, CLASSES = (3, 32, 32), 10


@dataclass(frozen=True)
class Request:
    """A measurement.

    Attributes:
        what: which of a side's programs.
        network: the classifier, for images of `SHAPE` in `CLASSES` classes.
        victims: how many, of one image each.
        device: ``cpu`` or ``cuda``.
        seconds: how long to measure, about.
    """

    what: str
    network: Network
    victims: int
    device: str = "cpu"
    seconds: float = 1.0

    def line(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def parsed(cls, line: str) -> Request:
        fields: dict[str, Any] = json.loads(line)
        return cls(**{**fields, "network": Network(**fields["network"])})


Program = Callable[[int], int]
"""Goes so many steps; returns the victim-steps that this was."""


def clock(device: str) -> float:
    """CPU seconds of this process, which other processes hardly touch; on a GPU the wall's, when its work is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def measure(program: Program, seconds: float, device: str) -> float:
    """Return seconds per victim-step over about ``seconds``, at least one step."""
    began = clock(device)
    program(1)
    steps = max(1, round(seconds / max(1e-6, clock(device) - began)))
    began = clock(device)
    done = program(steps)
    return (clock(device) - began) / done


def serve(programs: dict[str, Callable[[Request], Program]]) -> None:
    """Answer requests on standard input until it ends; a program is prepared and warmed up at its first request."""
    torch.set_num_threads(1)
    ready: dict[tuple[Any, ...], Program] = {}
    for line in sys.stdin:
        request = Request.parsed(line)
        key = (request.what, request.network, request.victims, request.device)
        if key not in ready:
            ready[key] = programs[request.what](request)
            ready[key](3)
        found = measure(ready[key], request.seconds, request.device)
        print(json.dumps({"seconds": found}), flush=True)
