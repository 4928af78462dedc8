"""What a trial costs beside its work: the difference of a sweep of many trials that do next to nothing and one of few.

    FEDVEIL_DATA=... python -m benchmarks.trial_overhead

A trial trains a narrow network on two clients with 100 images for one round, and its attack is the guess of an attacker
without the update; references are not measured. Starting Python, Ray and MLflow, loading the data and training the judge are
the same in both sweeps and cancel out.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.cores import SLOT, watched
from benchmarks.machine import about

EXPERIMENT: dict[str, Any] = {
    "experiment": "trivial",
    "data": {"name": "pneumoniamnist", "limit": 200},
    "model": {"name": "convnet", "width": 4},
    "fl": {"clients": 2, "rounds": 1},
    "references": {"measure": False},
    "audit": {"rounds": [0], "victims": 2, "attacks": ["baseline"]},
    "resources": {"workers": 1, "cpus_per_worker": 1},
    "search": {
        "searcher": "random",
        "objectives": {"utility/accuracy": "max"},
        "space": {"fl.learning_rate": {"loguniform": [0.01, 0.1]}},
    },
}


def sweep(trials: int, every: float = 0.2) -> dict[str, float]:
    """Return wall seconds of a sweep from the start of Python to its end, and CPU seconds of its processes by kind."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trivial.yaml"
        search = {**EXPERIMENT["search"], "samples": trials}
        file.write_text(json.dumps({**EXPERIMENT, "search": search}))
        command = [sys.executable, "-m", "orchestrator", "sweep", str(file), "--runs-dir", folder]
        wall, driver, seen = watched(command, Path(folder), every=every)
    found = {"wall": wall, "driver": 0.0, "trials": 0.0, "slots": 0.0, "rest": 0.0}
    for number, (title, seconds) in seen.items():
        if number == driver:
            found["driver"] += seconds
        elif SLOT.match(title):
            found["slots"] += seconds
        else:
            found["trials" if title.startswith("ray::ImplicitFunc") else "rest"] += seconds
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=2)
    parser.add_argument("--many", type=int, default=42)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/trial_overhead.json"))
    arguments = parser.parse_args()
    few, many = sweep(arguments.few), sweep(arguments.many)
    row = {key: round((many[key] - few[key]) / (arguments.many - arguments.few), 3) for key in few}
    print(few, many, row, sep="\n")
    record = {"machine": about(), "few": arguments.few, "many": arguments.many, "per_trial": row}
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
