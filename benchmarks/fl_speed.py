"""Seconds of federated training per round: ours against a plain loop, pfl-research and Flower, on two cores.

    benchmarks/peers/federated.sh && FEDVEIL_DATA=... python -m benchmarks.fl_speed
    FEDVEIL_DATA=... python -m benchmarks.fl_speed --memory

CIFAR-10's subset on 100 clients, of which 10 train in a round, with plain SGD on batches of 10. Each side is a command in an
environment of its own. All sides are alive at once, each trains a round in its turn and the others wait, so that what else
the machine does falls on all of them. CPU seconds are those of all processes of a side while its round lasts; the first
round counts from the start of the command. ``--memory`` records what our processes hold over 50 rounds of 100 among 1,000.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, TextIO

import torch

from benchmarks.cores import MARK, processes
from benchmarks.machine import about
from benchmarks.peers.federation import DONE, Settings

SIDES: Mapping[str, tuple[str, ...]] = {
    "plain": (sys.executable, "-m", "benchmarks.peers.plain_loop", "1"),
    "plain, two processes": (sys.executable, "-m", "benchmarks.peers.plain_loop", "2"),
    "serial": (sys.executable, "-m", "benchmarks.our_federation", "0"),
    "ray, one worker": (sys.executable, "-m", "benchmarks.our_federation", "1"),
    "ray, two workers": (sys.executable, "-m", "benchmarks.our_federation", "2"),
    "pfl": (".venv-pfl/bin/python", "-m", "benchmarks.peers.pfl_side"),
    "flower": (".venv-flower/bin/python", "-m", "benchmarks.peers.flower_side"),
}
WORKERS = ("ray::SlotActor", "ray::ClientAppActor")
"""How the processes are called in which clients train, where that is not the one that was started."""
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Taken:
    """What a round took, in seconds.

    Attributes:
        wall: from the request, or the start of the command, to the end.
        driver: CPU of the process that was started.
        workers: CPU of those that train for it.
        rest: CPU of all others, such as Ray's own.
    """

    wall: float
    driver: float
    workers: float
    rest: float

    @property
    def cpu(self) -> float:
        return self.driver + self.workers + self.rest


class Side:
    """A side that runs.

    Args:
        command: without the settings.
        settings: of the federation.
        log: for what it says on standard error.
    """

    def __init__(self, command: tuple[str, ...], settings: Settings, log: TextIO) -> None:
        self._mark = uuid.uuid4().hex
        self._began = time.monotonic()
        self._before: dict[int, tuple[str, float]] = {}
        self._process = subprocess.Popen(
            [*command, *settings.arguments()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": ".",
                "OMP_NUM_THREADS": "1",
                "FLWR_TELEMETRY_ENABLED": "0",
                MARK: self._mark,
            },
        )
        self._first = True

    def round(self) -> Taken:
        """Have it train a round."""
        if not self._first:
            self._before, self._began = processes(self._mark), time.monotonic()
        self._first = False
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._line(DONE)
        wall, parts = time.monotonic() - self._began, {"driver": 0.0, "workers": 0.0, "rest": 0.0}
        for number, (title, seconds) in processes(self._mark).items():
            part = "driver" if number == self._process.pid else "workers" if title.startswith(WORKERS) else "rest"
            parts[part] += seconds - self._before.get(number, ("", 0.0))[1]
        return Taken(wall, **parts)

    def resident(self) -> int:
        """Return the bytes that its processes hold, shared pages counted in each."""
        pages = 0
        for number in processes(self._mark):
            try:
                pages += int(Path(f"/proc/{number}/statm").read_text().split()[1])
            except OSError:  # it has ended meanwhile
                continue
        return pages * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> float:
        """Ask for no more rounds, and return the loss of the model that was trained."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        loss = float(json.loads(self._line('{"loss"'))["loss"])
        self._process.wait()
        return loss

    def kill(self) -> None:
        """End the process that was started, if it has not ended; those of Ray end with it."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def _line(self, beginning: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(beginning):
                return line
        raise SystemExit(f"{' '.join(map(str, self._process.args))}: ended early, see its log")


@contextmanager
def started(command: tuple[str, ...], settings: Settings, log: TextIO) -> Iterator[Side]:
    """Yield a side, which does not outlive the block."""
    side = Side(command, settings, log)
    try:
        yield side
    finally:
        side.kill()


def repetition(names: list[str], settings: Settings, log: TextIO) -> dict[str, dict[str, Any]]:
    """Start each side, have them train their rounds in turn, and return by side its rounds and its model's loss."""
    with ExitStack() as stack:
        sides, rounds = {}, {}
        for name in names:
            sides[name] = stack.enter_context(started(SIDES[name], settings, log))
            rounds[name] = [sides[name].round()]
        for number in range(1, settings.rounds):
            # Whoever comes after the same neighbour each time would find the same caches each time.
            for name in names if number % 2 else reversed(names):
                rounds[name].append(sides[name].round())
        return {name: {"rounds": rounds[name], "loss": side.close()} for name, side in sides.items()}


def spread(values: list[float]) -> dict[str, float]:
    """Return the median, least and largest."""
    return {"median": round(median(values), 3), "least": round(min(values), 3), "most": round(max(values), 3)}


def row(settings: Settings, runs: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return what repetitions of a setting come to; ratios to the plain loop are taken round by round."""
    found: dict[str, Any] = {"settings": asdict(settings), "repetitions": len(runs), "sides": {}}
    for name in runs[0]:
        first = [run[name]["rounds"][0] for run in runs]
        later = [one for run in runs for one in run[name]["rounds"][1:]]
        floor = [one for run in runs for one in run["plain"]["rounds"][1:]]
        found["sides"][name] = {
            "first_wall": spread([one.wall for one in first]),
            "first_cpu": spread([one.cpu for one in first]),
            "wall": spread([one.wall for one in later]),
            "cpu": spread([one.cpu for one in later]),
            **{part: round(median(getattr(one, part) for one in later), 3) for part in ("driver", "workers", "rest")},
            "cpu_over_plain": spread([a.cpu / b.cpu for a, b in zip(later, floor, strict=True)]),
            "loss": spread([run[name]["loss"] for run in runs]),
        }
    return found


def memory(name: str, settings: Settings, log: TextIO) -> dict[str, Any]:
    """Return what a side's processes hold after each round, in MiB."""
    with started(SIDES[name], settings, log) as side:
        held = []
        for _ in range(settings.rounds):
            side.round()
            held.append(round(side.resident() / MEBIBYTE))
        side.close()
    return {"side": name, "settings": asdict(settings), "mebibytes": held}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument(
        "--epochs", type=int, nargs="+", default=[1, 5], help="settings, by a client's passes per round"
    )
    parser.add_argument("--rounds", type=int, default=6, help="per repetition; the first stands by itself")
    parser.add_argument("--repetitions", type=int, default=4)
    parser.add_argument("--memory", action="store_true", help="measure memory instead, and keep the rest of the record")
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="what the sides say")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fl_speed.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": [], "memory": []}
    with arguments.log.open("w") as log:
        if arguments.memory:
            large = Settings(clients=1000, cohort=100, rounds=50)
            record["memory"] = [memory(name, large, log) for name in ("serial", "ray, two workers")]
        else:
            record["rows"] = []
            for epochs in arguments.epochs:
                settings = Settings(epochs=epochs, rounds=arguments.rounds)
                runs = [repetition(arguments.sides, settings, log) for _ in range(arguments.repetitions)]
                record["rows"].append(row(settings, runs))
                print(json.dumps(record["rows"][-1]), flush=True)
    record["machine"] = about()
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
