"""Seconds per victim-step, ours against breaching's, on one thread (and on a GPU where there is one).

    benchmarks/peers/setup.sh && python -m benchmarks.speed

A process per environment stays alive; measurements of about a second alternate between them: floor, peer, step, loop, floor,
... . Reported are medians over the rounds, and the medians and the spread of the ratios within a round. On a CPU seconds are
CPU seconds of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.machine import about
from benchmarks.peers.cells import Network
from benchmarks.peers.serving import Request

NETWORKS = (
    Network("lenet"),
    Network("convnet", width=8),
    Network("convnet", width=32),
    Network("resnet20", "batch"),
)
PEER = Path(".venv-breaching/bin/python")

Ask = Callable[[Request], float]


@contextmanager
def side(python: str, module: str) -> Iterator[Ask]:
    """Start a side; yields a function that has it measure and returns seconds per victim-step."""
    environment = {**os.environ, "PYTHONPATH": ".", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [python, "-W", "ignore", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    given, got = process.stdin, process.stdout

    def ask(request: Request) -> float:
        given.write(request.line() + "\n")
        given.flush()
        line = got.readline()
        if not line:
            raise SystemExit(f"{module}: ended while it measured {request}")
        return float(json.loads(line)["seconds"])

    try:
        yield ask
    finally:
        given.close()
        process.wait()


def ratios(top: list[float], bottom: list[float]) -> dict[str, float]:
    """Return the median, least and largest of top / bottom, round by round."""
    found = sorted(a / b for a, b in zip(top, bottom, strict=True))
    return {"median": round(median(found), 3), "least": round(found[0], 3), "most": round(found[-1], 3)}


def setting(
    ask: dict[str, Ask], network: Network, victims: int, device: str, rounds: int, seconds: float
) -> dict[str, Any]:
    """Measure one setting, side after side, ``rounds`` times."""
    programs = {"floor": "ours", "inverting_gradients": "peer", "step": "ours", "loop": "ours"}
    programs = {what: who for what, who in programs.items() if who in ask}
    taken: dict[str, list[float]] = {what: [] for what in programs}
    for _ in range(rounds):
        for what, who in programs.items():
            taken[what].append(ask[who](Request(what, network, victims, device, seconds)))
    found: dict[str, Any] = {"network": str(network), "victims": victims, "device": device}
    found["milliseconds"] = {what: round(1e3 * median(values), 4) for what, values in taken.items()}
    found["step_over_floor"] = ratios(taken["step"], taken["floor"])
    if "inverting_gradients" in taken:
        found["peer_over_step"] = ratios(taken["inverting_gradients"], taken["step"])
        found["peer_over_loop"] = ratios(taken["inverting_gradients"], taken["loop"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--victims", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--networks", nargs="+", default=[str(network) for network in NETWORKS])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--no-peer", action="store_true", help="only our step, loop and floor")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with ExitStack() as stack:
        ask = {"ours": stack.enter_context(side(sys.executable, "benchmarks.our_speed"))}
        if not arguments.no_peer:
            ask["peer"] = stack.enter_context(side(str(PEER), "benchmarks.peers.breaching_speed"))
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            for network in NETWORKS:
                for victims in arguments.victims:
                    if str(network) in arguments.networks:
                        rows.append(setting(ask, network, victims, device, arguments.rounds, arguments.seconds))
                        print(json.dumps(rows[-1]), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"peer": "breaching 0.1.2", "machine": about(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
