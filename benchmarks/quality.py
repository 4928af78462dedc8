"""Our side of the quality benchmark, and the scores of both sides.

    python -m benchmarks.peers.make_updates                     # what the victims send, once
    python -m benchmarks.quality run --evaluations 200          # our attack; resumes
    python -m benchmarks.quality score                          # benchmarks/results/quality/*.json, of both sides

The peer's side is benchmarks/peers/run_breaching.py, in its own environment. An attack is given the server's weights, the
updates, labels, local steps and the learning rate; it never holds an original. All reconstructions are scored here, by
`benchmarks.peers.scores.psnrs`.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, pstdev
from typing import Any

import torch

import fedveil as fv
from benchmarks.machine import about
from benchmarks.peers.cells import CHANNELS, CLASSES, DATA, LEARNING_RATE, Cell, work
from benchmarks.peers.make_updates import private_images, victims_of
from benchmarks.peers.scores import psnrs
from fedveil.attacks import ATTACKS
from fedveil.fl.data import split_train
from fedveil.fl.models import ModelSpec, build_model
from fedveil.fl.training import load_exchanged

FOLDER = Path("runs/quality")
RESULTS = Path("benchmarks/results/quality")


def updates_of(cell: Cell, content: dict[str, Any]) -> list[fv.Update]:
    """Return the updates of a cell as an attacker gets them."""
    if cell.steps == 1:
        return [fv.Update.gradient(tensors, examples=cell.batch) for tensors in content["updates"]]
    return [
        fv.Update.delta(
            tensors, learning_rate=LEARNING_RATE, local_steps=cell.steps, examples=cell.batch, buffers=buffers
        )
        for tensors, buffers in zip(content["updates"], content["buffers"], strict=True)
    ]


def reconstruct(cell: Cell, content: dict[str, Any], attack: fv.Attack) -> torch.Tensor:
    """Return what ``attack`` makes of a cell's updates: (victims, C, H, W)."""
    shape = (CHANNELS[cell.data], *content["images"].shape[2:])
    model = build_model(ModelSpec(cell.network.model, shape, CLASSES[cell.data], cell.network.norm))
    load_exchanged(model, content["weights"])
    report = fv.audit(
        model,
        updates_of(cell, content),
        labels=content["labels"],
        attacks=[attack],
        image_shape=shape,
        batch_size=cell.batch,
    )
    (images,) = report.reconstructions.values()
    return images


def attack_cells(folder: Path, name: str, evaluations: list[int], only: str) -> None:
    """Attack all cells that are written and not yet done, and keep the reconstructions."""
    out = folder / "fedveil"
    out.mkdir(parents=True, exist_ok=True)
    for cell, budget in work():
        path, done = folder / "cells" / f"{cell}.pt", out / f"{cell}_{name}_{budget}.pt"
        if budget not in evaluations or not re.search(only, str(cell)) or not path.exists() or done.exists():
            continue
        content = torch.load(path)
        attack = ATTACKS[name](steps=budget)
        began = time.process_time()
        images = reconstruct(cell, content, attack)
        record = {"images": images, "attack": repr(attack), "cpu_seconds": time.process_time() - began}
        torch.save(record, done)
        mean = fmean(scores(cell, content["images"], images))
        print(f"{cell} {budget} {name}: {mean:.2f} dB, {record['cpu_seconds']:.0f} s", flush=True)


def scores(cell: Cell, originals: torch.Tensor, found: torch.Tensor) -> list[float]:
    """Return the PSNR of each victim; images of one update are matched one to one."""
    pairs = zip(originals.split(cell.batch), found.split(cell.batch), strict=False)
    return [value for x, y in pairs for value in psnrs(x.numpy(), y.numpy())]


def row(cell: Cell, evaluations: int, attack: str, values: list[float], cpu_seconds: float) -> dict[str, Any]:
    """Return a record of one attack on one cell."""
    return {
        "data": cell.data,
        "network": str(cell.network),
        "weights": cell.weights,
        "batch": cell.batch,
        "local_steps": cell.steps,
        "evaluations": evaluations,
        "attack": attack,
        "victims": len(values),
        "psnr_mean": round(fmean(values), 3),
        "psnr_std": round(pstdev(values), 3),
        "psnr_median": round(median(values), 3),
        "psnr_least": round(min(values), 3),
        "above_40_db": sum(value > 40 for value in values),
        "psnr": [round(value, 2) for value in values],
        "cpu_seconds": round(cpu_seconds, 1),
    }


def score_ours(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return the records of our attack ``name``."""
    rows = []
    for cell, budget in work():
        done = folder / "fedveil" / f"{cell}_{name}_{budget}.pt"
        if done.exists():
            record, content = torch.load(done), torch.load(folder / "cells" / f"{cell}.pt")
            values = scores(cell, content["images"], record["images"])
            rows.append(row(cell, budget, record["attack"], values, record["cpu_seconds"]))
    return rows


def score_peer(folder: Path) -> list[dict[str, Any]]:
    """Return the peer's records, of the configurations that were dropped early too."""
    rows = []
    for cell, budget in work():
        for name in ("deepleakage", "invertinggradients", "modern"):
            done = folder / "breaching" / f"{cell}_{name}_{budget}.pt"
            if done.exists():
                entries, content = torch.load(done), torch.load(folder / "cells" / f"{cell}.pt")
                values = scores(cell, content["images"], torch.cat([entry["images"] for entry in entries]))
                seconds = sum(entry["cpu_seconds"] for entry in entries)
                rows.append(row(cell, budget, name, values, seconds))
    return rows


_SETTING = ("data", "network", "weights", "batch", "local_steps", "evaluations")


def merged(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return all records, of a setting and an attack the newer: reconstructions are large, and kept no longer than wanted.

    One of fewer victims, as of an attack that is still at it, replaces none. An attack is the same whatever its settings.
    """
    kept: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for one in (*old, *new):
        key = (*(one[name] for name in _SETTING), one["attack"].split("(")[0])
        if key not in kept or kept[key]["victims"] <= one["victims"]:
            kept[key] = one
    return list(kept.values())


def guess(data: str) -> float:
    """Return the mean PSNR of the class means of auxiliary images, in dB."""
    known = split_train(fv.load_data(data).train, public_fraction=0.05, auxiliary_fraction=0.2, seed=0).auxiliary
    victims, images = victims_of(private_images(data)[0]), known.floats()
    means = torch.stack([images[known.labels == label].mean(0) for label in victims.labels])
    return fmean(psnrs(victims.floats().numpy(), means.numpy()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "score"))
    parser.add_argument("--attack", default="strongest")
    parser.add_argument("--evaluations", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--only", default="", help="cells whose name this regular expression finds")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "run":
        attack_cells(arguments.folder, arguments.attack, arguments.evaluations, arguments.only)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    sides = {
        "fedveil": score_ours(arguments.folder, arguments.attack),
        "breaching": score_peer(arguments.folder),
    }
    for side, rows in sides.items():
        if rows:
            path = arguments.out / f"{side}.json"
            before: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": []}
            record = {**before, "side": side, "machine": about(), "rows": merged(before["rows"], rows)}
            if side == "fedveil":
                record["guess"] = {data: round(guess(data), 3) for data in DATA}
            path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
