"""How a federation's schedule suits a defence: accuracy on validation images, without attacks.

    FEDVEIL_DATA=... python -m benchmarks.schedules --data blood --defense latent --settings '{"k": 10}' \\
        --fl '{}' '{"rounds": 96, "local_steps": 12, "learning_rate_decay": 0.974}'

The federations are those of the study (`benchmarks.study.protocols`), with other settings of ``fl``. Nothing here looks at
test images: schedules are chosen by validation images. A row that the record holds is not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import about
from benchmarks.study.cell import experiment
from benchmarks.study.protocols import PROTOCOLS
from fedveil.defense import DEFENSES, DefenseContext
from fedveil.fl.executor import SerialExecutor
from fedveil.fl.rounds import Simulation
from fedveil.orchestrator.config import check
from fedveil.orchestrator.run.federation import build_federation, first_state
from fedveil.orchestrator.run.setup import make_setup

OUT = Path("benchmarks/results/schedules.json")
CACHE = Path("runs/cache")


def measured(asked: dict[str, Any]) -> dict[str, Any]:
    """Run one federation, and return its row."""
    raw = experiment(asked["data"], asked["seed"], asked["defense"], asked["settings"], {})
    checked = check({**raw, "fl": {**raw["fl"], **asked["fl"]}})
    setup = make_setup(checked)
    device = torch.device("cpu")
    context = DefenseContext(setup.public, setup.model, device, asked["seed"], CACHE, tuple(checked.fl.augmentation))
    executor = SerialExecutor(device)
    began = time.process_time()
    public = DEFENSES[asked["defense"]](**asked["settings"]).pretrain(context)
    federation, _ = build_federation(checked, setup, context, public, executor)
    prepared = time.process_time()
    simulation = Simulation(federation, executor, first_state(checked, setup, federation, executor, cache=CACHE))
    curve = []
    validation = executor.broadcast(setup.validation)
    for number in range(checked.fl.rounds):
        simulation.round()
        if (number + 1) * 8 // checked.fl.rounds > number * 8 // checked.fl.rounds:
            curve.append(round(simulation.evaluate_clean(validation).accuracy, 4))
    return {
        **asked,
        "curve": curve,
        "validation_images": len(setup.validation),
        "prepare_seconds": round(prepared - began, 1),
        "train_seconds": round(time.process_time() - prepared, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(PROTOCOLS), default="blood")
    parser.add_argument("--defense", default="none")
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON: of the defence")
    parser.add_argument("--fl", nargs="+", type=json.loads, default=[{}], help="JSON each: other settings of fl")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for seed in arguments.seeds:
        for fl in arguments.fl:
            record: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": []}
            asked = {
                "data": arguments.data,
                "seed": seed,
                "defense": arguments.defense,
                "settings": arguments.settings,
                "fl": fl,
            }
            if any({key: row[key] for key in asked} == asked for row in record["rows"]):
                continue
            row = measured(asked)
            print(row, flush=True)
            record = {"machine": about(), "rows": [*record["rows"], row]}
            arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
