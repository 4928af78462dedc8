"""What defences of the update cost: accuracy on untouched test images, and bytes that a client sends in a round.

    FEDVEIL_DATA=... python -m benchmarks.update_defenses --seeds 0 1 2

Federations of the study on blood cells (`benchmarks.study.protocols`) without attacks. A row that the record holds is not
measured again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import fedveil as fv
from benchmarks.machine import about
from benchmarks.study.cell import experiment

OUT = Path("benchmarks/results/update_defenses.json")
DATA = "blood"
DEFENSES: tuple[dict[str, Any], ...] = (
    {"name": "none"},
    {"name": "top_k", "keep": 0.2},
    {"name": "dgp"},
    {"name": "dgp", "feedback": 0.0},
    {"name": "dgp", "aligned": True},
    {"name": "dgp", "aligned": True, "feedback": 0.0},
)
QUIET: dict[str, Any] = {
    "audit": {"rounds": [0], "victims": 32, "attacks": ["baseline"]},
    "references": {"measure": False},
}


def raw(seed: int, defense: dict[str, Any]) -> Any:
    """Return the experiment of a row, as a file would say it."""
    settings = {key: value for key, value in defense.items() if key != "name"}
    return experiment(DATA, seed, defense["name"], settings, QUIET)


def measured(seed: int, defense: dict[str, Any]) -> dict[str, Any]:
    """Train the federation of a row, and return it."""
    (trial,) = fv.run(raw(seed, defense)).rows
    wanted = ("utility/accuracy", "utility/auc", "cost/update_bytes", "cost/train_seconds")
    return {
        "data": DATA,
        "seed": seed,
        "defense": defense,
        **{name.partition("/")[2]: round(trial.metrics[name], 6) for name in wanted},
        "test_images": int(trial.metrics["utility/test_images"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        for defense in DEFENSES:
            record = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": []}
            if any((row["seed"], row["defense"]) == (seed, defense) for row in record["rows"]):
                continue
            row = measured(seed, defense)
            print(row, flush=True)
            record = {"machine": about(), "rows": [*record["rows"], row]}
            arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
