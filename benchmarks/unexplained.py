"""From which share of the update left unexplained on does an attack count as failed?

    FEDVEIL_DATA=... python -m benchmarks.unexplained        # about ten minutes on one core; resumes

Attacks of very different lengths on undefended updates of several networks and data sets. A record per network, data set,
weights and number of steps, with the share that is left and whether the images came back: closer than the attacker's guess
without an update (the mean of its images of the class), by mean squared error. The threshold of the report's "weak attack"
is chosen on the attacker's images here and nowhere else: every victim is one of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch.nn import functional as F

import fedveil as fv
from benchmarks.machine import about
from fedveil.fl.models import ModelSpec, build_model

MODELS: tuple[dict[str, Any], ...] = (
    {"name": "lenet"},
    {"name": "convnet", "width": 16},
    {"name": "convnet", "width": 16, "norm": "none"},
    {"name": "resnet20", "norm": "batch"},
)
DATA = ("mni152", "npz:pbc_blood_28.npz")
STEPS = (2, 5, 20, 60, 200)
TRAINED = (0, 40)
VICTIMS = 6


def rows(model_options: dict[str, Any], data_name: str, trained: int, steps: tuple[int, ...]) -> list[dict[str, Any]]:
    """Attack the same victims for ever longer."""
    side = {"size": 32} if data_name == "mni152" else {}
    data = fv.load_data(data_name, limit=800, **side)
    known = data.train
    model = build_model(ModelSpec(image_shape=known.shape, classes=len(data.classes), **model_options), 0)
    stream = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(trained):
        x, y = known.batch(torch.randint(len(known), (64,), generator=stream))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    chosen = known.take(torch.randperm(len(known), generator=stream)[:VICTIMS])
    x, y = chosen.floats(), chosen.labels
    guesses = torch.stack([known.floats()[known.labels == label].mean(0) for label in y])
    guess = (guesses - x).square().mean((1, 2, 3))
    updates = [fv.client_update(model, one[None], label[None])[0] for one, label in zip(x, y, strict=True)]
    found = []
    for count in steps:
        report = fv.audit(model, updates, images=x, labels=y, attacks=[fv.InvertingGradients(steps=count)])
        errors = torch.tensor([record.mse for record in report.records])
        shares = [record.misfit for record in report.records]
        found.append(
            {
                "model": model_options,
                "data": data_name,
                "trained": trained,
                "steps": count,
                "share": [round(share, 6) for share in shares if share is not None],
                "error_to_guess": [round(one, 4) for one in (errors / guess).tolist()],
                "worked": round(fmean((errors < guess).float().tolist()), 4),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/unexplained.json"))
    arguments = parser.parse_args()
    record: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": []}
    for model in MODELS:
        for data in DATA:
            for trained in TRAINED:
                asked = {"model": model, "data": data, "trained": trained}
                if any({key: row[key] for key in asked} == asked for row in record["rows"]):
                    continue
                record["rows"] += rows(model, data, trained, STEPS)
                record["machine"] = about()
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                arguments.out.write_text(json.dumps(record, indent=1) + "\n")
                for row in record["rows"][-len(STEPS) :]:
                    shares = sorted(row["share"])
                    print(
                        model, data, trained, row["steps"], "share", shares[len(shares) // 2], row["worked"], flush=True
                    )


if __name__ == "__main__":
    main()
