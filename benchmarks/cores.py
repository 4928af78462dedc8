"""How busy a sweep keeps the machine: CPU seconds of worker slots / (wall seconds x cores).

    FEDVEIL_DATA=... python -m benchmarks.cores
    FEDVEIL_DATA=... python -m benchmarks.cores --set fl.rounds=4 --set resources.workers=2

The sweep is tune_configs/pneumonia-minimax.yaml with two trials of its panel and six of its search. The wall begins before
Python starts and ends after the sweep has left, so that starting Ray, loading PyTorch and recording count against it.
Workers compute everything that is training or attack; what the rest of the processes took stands beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from benchmarks.machine import about

MARK = "FEDVEIL_BENCHMARK"
SLOT = re.compile(r"ray::(SlotActor|.*: )")
"""The title of a worker slot's process; at work it is ``ray::TRIAL: what it does``."""
SWEEP = "tune_configs/pneumonia-minimax.yaml"
TRIALS = [
    "search.panel=[{defense: none}, {defense: {name: pixel_noise, strength: 0.2}}]",
    "search.samples=6",
]
_TICK = os.sysconf("SC_CLK_TCK")


def processes(mark: str) -> dict[int, tuple[str, float]]:
    """Return title and CPU seconds of each process whose environment holds the mark, by its number."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            if f"{MARK}={mark}".encode() not in (folder / "environ").read_bytes().split(b"\0"):
                continue
            title = (folder / "cmdline").read_bytes().split(b"\0")[0].decode("utf-8", "replace")
            user, system = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]
        except OSError:  # it has ended meanwhile, or is not ours
            continue
        found[int(folder.name)] = (title, (int(user) + int(system)) / _TICK)
    return found


def watched(command: list[str], folder: Path, *, every: float) -> tuple[float, int, dict[int, tuple[str, float]]]:
    """Run a sweep, and return its wall seconds, the number of its process, and all of its processes (`processes`).

    Args:
        command: of the sweep.
        folder: for its log and its record.
        every: seconds between two looks.

    Raises:
        RuntimeError: it fails; with the end of its log.
    """
    mark, seen = uuid.uuid4().hex, {}
    environment = {**os.environ, MARK: mark, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    began = time.monotonic()
    with (folder / "log").open("wb") as log:
        sweep = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        while sweep.poll() is None:
            # A slot is a plain worker until it has its name, and counts from its start.
            seen |= processes(mark)
            time.sleep(every)
    wall = time.monotonic() - began
    if sweep.returncode:
        raise RuntimeError((folder / "log").read_text()[-3000:])
    return wall, sweep.pid, seen


def measured(overrides: list[str], every: float = 0.5) -> dict[str, Any]:
    """Run the sweep, and return what it took."""
    sets = [word for override in [*TRIALS, *overrides] for word in ("--set", override)]
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "orchestrator", "sweep", str(Path(SWEEP).absolute()), *sets]
        command += ["--json", str(record), "--runs-dir", folder]
        wall, _, seen = watched(command, Path(folder), every=every)
        trials = len(json.loads(record.read_text())["trials"])
    slots = sum(seconds for title, seconds in seen.values() if SLOT.match(title))
    return {
        "overrides": overrides,
        "trials": trials,
        "wall_seconds": round(wall, 1),
        "slot_cpu_seconds": round(slots, 1),
        "other_cpu_seconds": round(sum(seconds for _, seconds in seen.values()) - slots, 1),
        "busy": round(slots / (wall * (os.cpu_count() or 1)), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cores.json"))
    arguments = parser.parse_args()
    row = measured(arguments.overrides)
    print(row)
    record = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": []}
    others = [one for one in record["rows"] if one["overrides"] != row["overrides"]]
    arguments.out.write_text(json.dumps({"machine": about(), "rows": [*others, row]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
