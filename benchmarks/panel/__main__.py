"""Run the panel of `tune_configs/defence-panel.yaml`, a federation per setting and seed; what is done already stays.

    FEDVEIL_DATA=... python -m benchmarks.panel --data pneumonia --seeds 0 1
    FEDVEIL_DATA=... python -m benchmarks.panel --data blood --only 'latent|pixel_noise'

The settings are the file's, in its order, so that the panel can be run as a sweep just as well. Results go to
``benchmarks/results/panel-DATA.json`` after each. `python -m benchmarks.panel.render` makes docs/panel.md of them.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import fedveil as fv
from benchmarks.machine import about
from benchmarks.study.cell import as_row
from benchmarks.tables import RESULTS
from fedveil.orchestrator.config import with_overrides
from fedveil.orchestrator.config.options import normalise
from fedveil.orchestrator.config.yaml import parse

FILE = Path(__file__).parents[2] / "tune_configs" / "defence-panel.yaml"
DATA: dict[str, dict[str, Any]] = {
    "pneumonia": {},
    "blood": {
        "data.name": "npz:pbc_blood_28.npz",
        "data.pool": False,
        "data.public_fraction": 0.005,
        "data.auxiliary_fraction": 0.168,
    },
}
"""Of the file's experiment, what is different on each set."""
SEEDS = (0, 1)


@cache
def _file() -> dict[str, Any]:
    read: dict[str, Any] = parse(FILE.read_text())
    return read


def settings() -> list[dict[str, Any]]:
    """Return the panel's settings, each as the overrides of a trial."""
    panel: list[dict[str, Any]] = _file()["search"]["panel"]
    return panel


def experiment(data: str, seed: int, setting: Mapping[str, Any]) -> dict[str, Any]:
    """Return the experiment of one trial, as a file would say it."""
    raw = {key: section for key, section in _file().items() if key not in ("search", "seeds")}
    raw |= {"experiment": f"panel-{data}", "seed": seed, "resources": {"workers": 1, "cpus_per_worker": 1}}
    raw["tracking"] = {"uri": "sqlite:///panel.db", "images": "none"}
    return with_overrides(raw, {**DATA[data], **setting})


def run(data: str, seed: int, setting: Mapping[str, Any]) -> dict[str, Any]:
    """Run a trial, and return its row."""
    began = time.monotonic()
    raw = experiment(data, seed, setting)
    (trial,) = fv.run(raw).rows
    seconds = round(time.monotonic() - began, 1)
    own = dict(normalise(setting["defense"]))
    row = as_row(data, seed, own.pop("name"), own, trial.metrics, victims=raw["audit"]["victims"])
    return row | {"setting": dict(setting), "wall_seconds": seconds, "machine": about()}


def load(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a record, none where there is no record."""
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--only", default="", help="settings in whose JSON this regular expression is found")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        for data in arguments.data:
            path = arguments.out / f"panel-{data}.json"
            for setting in settings():
                done = any(row["seed"] == seed and row["setting"] == setting for row in load(path))
                if done or not re.search(arguments.only, json.dumps(setting)):
                    continue
                row = run(data, seed, setting)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps({"rows": [*load(path), row]}, indent=1) + "\n")
                print(data, seed, setting, row["utility"], row["privacy"]["worst"], flush=True)


if __name__ == "__main__":
    main()
