"""Peak memory of attacking many victims on ResNet-20, each in a fresh process; within 8 GiB?

    python -m benchmarks.memory --attacks '{"name": "inverting_gradients", "steps": 3}'

The peak is the resident set's high-water mark of the whole process, PyTorch and the updates included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import fedveil as fv
from benchmarks.machine import about
from fedveil.attacks import ATTACKS
from fedveil.fl.models import ModelSpec, build_model

SHAPE, CLASSES = (3, 32, 32), 10
LIMIT_GIB = 8.0
DEFAULT = ['{"name": "inverting_gradients", "steps": 3}', '{"name": "strongest", "steps": 40}']


def peak_gib() -> float:
    """Return this process's high-water mark so far; Linux states it in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def attacked(options: dict[str, Any], norm: str, victims: int) -> dict[str, Any]:
    """Attack in this process, and return what it took."""
    torch.set_num_threads(1)
    model = build_model(ModelSpec("resnet20", SHAPE, CLASSES, norm))
    stream = torch.Generator().manual_seed(0)
    images, labels = torch.rand(victims, *SHAPE, generator=stream), torch.arange(victims) % CLASSES
    updates = [fv.client_update(model, x[None], y[None])[0] for x, y in zip(images, labels, strict=True)]
    before, began = peak_gib(), time.process_time()
    settings = {key: value for key, value in options.items() if key != "name"}
    attack = ATTACKS[options["name"]](**settings)
    fv.audit(model, updates, labels=labels, attacks=[attack], image_shape=SHAPE, batch_size=1)
    return {
        "attack": repr(attack),
        "network": f"resnet20-{norm}",
        "victims": victims,
        "before_gib": round(before, 3),
        "peak_gib": round(peak_gib(), 3),
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--victims", type=int, default=256)
    parser.add_argument("--norms", nargs="+", default=["batch", "group"])
    parser.add_argument("--attacks", nargs="+", default=DEFAULT, help="JSON: a name and options")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/memory.json"))
    parser.add_argument("--here", action="store_true", help="one attack and norm, in this process; prints its record")
    arguments = parser.parse_args()
    if arguments.here:
        options = json.loads(arguments.attacks[0])
        print(json.dumps(attacked(options, arguments.norms[0], arguments.victims)))
        return
    rows = []
    for norm in arguments.norms:
        for attack in arguments.attacks:
            child = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", "--here", "--norms", norm]
            child += ["--attacks", attack, "--victims", str(arguments.victims)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            printed = subprocess.run(child, check=True, capture_output=True, text=True, env=environment).stdout
            rows.append(json.loads(printed.splitlines()[-1]))
            print(rows[-1], flush=True)
    record = {"limit_gib": LIMIT_GIB, "machine": about(), "rows": rows}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
