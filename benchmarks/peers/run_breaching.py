"""Attack the cells with breaching and keep what it reconstructs. Runs in the peer's own environment, for hours; resumes.

    PYTHONPATH=. .venv-breaching/bin/python -m benchmarks.peers.run_breaching --minutes 110

Each cell is attacked with three of the package's configurations. After the first 4 victims those that are more than
`BEHIND` dB of mean PSNR behind the best are dropped: the truth decides, in the peer's favour. Cells come in the order of
`benchmarks.peers.cells.work`, those that are not written yet are passed over.
"""

from __future__ import annotations

import argparse
import re
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.peers.breaching_side import CONFIGURATIONS, attack, load, mismatch
from benchmarks.peers.cells import VICTIMS, Cell, work
from benchmarks.peers.scores import psnrs

PILOT = 4
BEHIND = 1.5


@dataclass
class Run:
    """One configuration on one cell: what is done so far, kept in a file."""

    path: Path
    done: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def resumed(cls, path: Path) -> Run:
        return cls(path, torch.load(path) if path.exists() else [])

    def add(self, entry: dict[str, Any]) -> None:
        self.done.append(entry)
        part = self.path.with_suffix(".part")
        torch.save(self.done, part)
        part.rename(self.path)

    def mean(self, updates: int) -> float:
        return fmean(value for entry in self.done[:updates] for value in entry["psnr"])


def attacked(cell: Cell, content: dict[str, Any], at: int, name: str, evaluations: int) -> dict[str, Any]:
    """Attack one update, and return what is kept of it."""
    began = time.process_time()
    found, score, used = attack(cell, content, at, name, evaluations)
    originals = content["images"][at * cell.batch :][: cell.batch]
    return {
        "images": found,
        "psnr": psnrs(originals.numpy(), found.numpy()),
        "score": score,
        "evaluations": used,
        "cpu_seconds": time.process_time() - began,
    }


def steps(cell: Cell, evaluations: int, cells: Path, out: Path) -> Iterator[str]:
    """Attack a cell, one update at a time; yield a line on each."""
    content = load(cell, cells)
    error = max(mismatch(cell, content, at) for at in range(2))
    if error > 1e-4:
        raise SystemExit(f"{cell}: the peer computes another update from the true images, by {error:.1e}")
    runs = {name: Run.resumed(out / f"{cell}_{name}_{evaluations}.pt") for name in CONFIGURATIONS}
    pilot, updates = max(1, PILOT // cell.batch), VICTIMS // cell.batch

    def until(name: str, last: int) -> Iterator[str]:
        while len(runs[name].done) < last:
            runs[name].add(attacked(cell, content, len(runs[name].done), name, evaluations))
            yield f"{cell} {evaluations} {name} {len(runs[name].done)}/{updates}: {runs[name].mean(updates):.2f} dB"

    for name in CONFIGURATIONS:
        yield from until(name, pilot)
    means = {name: run.mean(pilot) for name, run in runs.items()}
    for name in sorted(CONFIGURATIONS, key=lambda one: -means[one]):
        if means[name] >= max(means.values()) - BEHIND:
            yield from until(name, updates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=Path, default=Path("runs/quality/cells"))
    parser.add_argument("--out", type=Path, default=Path("runs/quality/breaching"))
    parser.add_argument("--evaluations", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--only", default="", help="cells whose name this regular expression finds")
    parser.add_argument("--minutes", type=float, default=110.0, help="then stop after the update at hand")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * arguments.minutes
    for cell, evaluations in work():
        asked = evaluations in arguments.evaluations and re.search(arguments.only, str(cell))
        if not asked or not (arguments.cells / f"{cell}.pt").exists():
            continue
        for line in steps(cell, evaluations, arguments.cells, arguments.out):
            print(line, flush=True)
            if time.monotonic() > deadline:
                return


if __name__ == "__main__":
    main()
