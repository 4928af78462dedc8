"""What the strongest attackers leave of each defence, beside plain Inverting Gradients: a small federation per defence.

    FEDVEIL_DATA=... python -m benchmarks.strength                   # an hour or more on two cores; resumes
    python -m benchmarks.strength --set data.name=mni152 --set fl.rounds=2 --attacks '{"name": "strongest", "steps": 40}'

A record per defence and seed: utility, and each attack's scores at its leakiest audit. Defences come with one setting each:
attacks can be compared on a defence; defences with each other only at equal utility, which this table does not arrange.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import fedveil as fv
from benchmarks.machine import about

DEFENSES: tuple[dict[str, Any], ...] = (
    {"name": "none"},
    {"name": "pixel_noise", "strength": 0.2},
    {"name": "latent_noise", "strength": 1.2},
    {"name": "latent_autoencoder", "strength": 1.68, "privacy_weight": 1.75, "steps": 150, "client_steps": 40},
    {"name": "top_k", "keep": 0.05},
    {"name": "update_noise", "strength": 0.01},
)
ATTACKS: tuple[dict[str, Any], ...] = (
    {"name": "inverting_gradients", "steps": 200},
    {"name": "strongest", "steps": 600},
    {"name": "adaptive"},
    {"name": "adaptive_modules"},
)
BASE: dict[str, Any] = {
    "data": {"name": "pneumoniamnist", "pool": True, "limit": 2500, "public_fraction": 0.1},
    "model": {"name": "convnet", "width": 16},
    "fl": {"clients": 4, "rounds": 12, "learning_rate_decay": 0.85},
    "audit": {"rounds": [0, "last"], "victims": 32, "clients": 2, "chunks": 1},
    "tracking": {"uri": "sqlite:///strength.db", "images": "none"},
    "resources": {"workers": 1, "cpus_per_worker": 1},
}


def trial(defense: dict[str, Any], attacks: list[dict[str, Any]], seed: int, overrides: list[str]) -> dict[str, Any]:
    """Run one federation, and return its record."""
    name = f"strength-{defense['name']}-{seed}"
    experiment = {**BASE, "experiment": name, "defense": defense, "seed": seed}
    experiment["audit"] = {**BASE["audit"], "attacks": attacks}
    (row,) = fv.run(experiment, overrides=overrides).rows
    metrics = {key: round(value, 6) for key, value in sorted(row.metrics.items())}
    return {"defense": defense, "seed": seed, "overrides": overrides, "attacks": attacks, "metrics": metrics}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--defenses", nargs="+", type=json.loads, default=list(DEFENSES), help="JSON: a name and options"
    )
    parser.add_argument("--attacks", nargs="+", type=json.loads, default=list(ATTACKS), help="JSON: a name and options")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="a.b=VALUE")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/strength.json"))
    arguments = parser.parse_args()
    record: dict[str, Any] = (
        json.loads(arguments.out.read_text()) if arguments.out.exists() else {"base": BASE, "rows": []}
    )
    known = ("defense", "seed", "overrides", "attacks")
    for seed in arguments.seeds:
        for defense in arguments.defenses:
            asked = dict(zip(known, (defense, seed, arguments.overrides, arguments.attacks), strict=True))
            if any({key: row[key] for key in known} == asked for row in record["rows"]):
                continue
            record["rows"].append(trial(defense, arguments.attacks, seed, arguments.overrides))
            record["machine"] = about()
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(record, indent=1) + "\n")
            print(defense["name"], seed, record["rows"][-1]["metrics"], flush=True)


if __name__ == "__main__":
    main()
