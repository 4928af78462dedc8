"""What a released classifier shows of its classes, defence by defence; what is measured already stays.

    FEDVEIL_DATA=... python -m benchmarks.model_inversion --data blood mnist --seeds 0
    python -m benchmarks.model_inversion --render

Half of the classes are private. A row is a federation behind a defence, then attackers of the finished model. A defence may
act on answers alone: the network then is that of `none`, bit for bit, and attackers with the weights are not run again.
Results go to benchmarks/results/model_inversion.json after each row, and into docs/model-inversion.md with ``--render``.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import about
from benchmarks.markdown import machine, table
from fedveil.attacks.base import numbered
from fedveil.attacks.model_inversion.audit import InversionReport
from fedveil.attacks.scoring import paired_difference_of
from fedveil.defense import DEFENSES
from fedveil.fl.executor import SerialExecutor
from fedveil.orchestrator.config import check
from fedveil.orchestrator.run import checkpoint
from fedveil.orchestrator.run.callbacks import TrialCallback
from fedveil.orchestrator.run.setup import make_setup
from fedveil.orchestrator.run.trial import Trial

RESULTS = Path(__file__).parent / "results" / "model_inversion.json"
PAGE = Path(__file__).parents[1] / "docs" / "model-inversion.md"
CACHE = Path("runs/cache")

DATA: Mapping[str, Mapping[str, Any]] = {
    "blood": {"name": "npz:pbc_blood_28.npz", "private_classes": [0, 1, 2, 3]},
    "mnist": {"name": "mnist", "private_classes": [0, 1, 2, 3, 4], "limit": 12_000},
}
COMMON: Mapping[str, Any] = {
    "model": {"name": "convnet", "width": 16},
    "fl": {
        "clients": 4,
        "rounds": 8,
        "local_epochs": 1,
        "batch_size": 64,
        "optimizer": "adam",
        "learning_rate": 0.002,
        "learning_rate_decay": 0.85,
    },
    "references": {"measure": False},
}
TRAINING: Mapping[str, Mapping[str, Any]] = {
    "none": {"name": "none"},
    "random_erasing 0.1-0.4": {"name": "random_erasing"},
    "bido": {"name": "bido"},
}
"""Defences that change what is trained, by row."""
ANSWERS: Mapping[str, Mapping[str, Any]] = {
    "output_rounding 1": {"name": "output_rounding", "decimals": 1},
    "output_noise 0.1": {"name": "output_noise", "strength": 0.1},
    "lpa 0.1": {"name": "lpa", "strength": 0.1},
    "output_noise 0.5": {"name": "output_noise", "strength": 0.5},
    "lpa 0.5": {"name": "lpa", "strength": 0.5},
    "lfp 0.05": {"name": "lfp", "fraction": 0.05},
}
"""Defences of answers alone."""
GAN: Mapping[str, Any] = {"steps": 600}
DECODER: Mapping[str, Any] = {"steps": 800, "batch_size": 64, "width": 8}
"""What a share of one core can train in minutes: stronger attackers train longer."""
HOLDING = [
    {"name": "gmi", "gan": GAN, "per_class": 16, "steps": 150, "restarts": 1},
    {"name": "ked_mi", "gan": {"steps": 400}, "per_class": 32, "steps": 150},
    {"name": "brep_mi", "gan": GAN, "per_class": 8, "steps": 25, "points": 12, "tries": 1024},
]
ASKING = [
    {"name": "training_based", "reading": reading, "decoder": DECODER}
    for reading in ("released", "sharpened", "rounded", "label")
]
SEEDS = (0, 1)


def experiment(data: str, seed: int, defense: Mapping[str, Any], *, answers_alone: bool) -> Any:
    """Return a row's experiment, as a file would say it."""
    attacks = ASKING if answers_alone else [*HOLDING, *ASKING]
    return {
        "experiment": "model-inversion",
        "seed": seed,
        **COMMON,
        "data": {**DATA[data], "public_fraction": 0.1, "auxiliary_fraction": 0.2},
        "defense": dict(defense),
        "audit": {"rounds": ["last"], "victims": 200, "attacks": [], "model_inversion": attacks},
    }


class Errors(TrialCallback):
    """Keeps each victim's error under each attack that rebuilds it, in units of 1e-5."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def on_inversion(self, report: InversionReport) -> None:
        self.found = {
            label: " ".join(f"{error * 1e5:.0f}" for error in outcome.errors.tolist())
            for label, outcome in report.outcomes.items()
            if outcome.errors is not None
        }


def measure(data: str, seed: int, row: str) -> dict[str, Any]:
    """Run a row, and return it with its numbers."""
    began = time.monotonic()
    defense = {**TRAINING, **ANSWERS}[row]
    checked = check(experiment(data, seed, defense, answers_alone=row in ANSWERS))
    errors, setup = Errors(), make_setup(checked)
    # What acts on answers alone trains as `none` does: the rounds are gone through once.
    trained = CACHE.parent / f"model-inversion-{data}-{seed}"
    known = checkpoint.load(trained) if row in ANSWERS else None
    trial = Trial(checked, setup, SerialExecutor(), cache=CACHE, callbacks=[errors])
    result = trial.run(known.progress if known else None)
    if known is None and row in ("none", *ANSWERS):
        trained.mkdir(parents=True, exist_ok=True)
        checkpoint.save(checkpoint.Saved(progress=result.progress), trained)
    kept = ("utility/", "inversion/", "defense/")
    return {
        "data": data,
        "seed": seed,
        "row": row,
        "metrics": {name: round(value, 6) for name, value in result.metrics.items() if name.startswith(kept)},
        "errors": errors.found,
        "seconds": round(time.monotonic() - began, 1),
    }


def load(path: Path = RESULTS) -> dict[str, Any]:
    """Return the record, an empty one where there is none."""
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": []}
    return record


def page(record: Mapping[str, Any]) -> str:
    """Return the tables of all data sets, and what is missing."""
    parts = [section(data, record) for data in DATA]
    if record["rows"]:
        parts.append(machine(dict(record)))
    return "\n\n".join(parts)


def section(data: str, record: Mapping[str, Any]) -> str:
    """Return a data set's table."""
    rows = [row for row in record["rows"] if row["data"] == data]
    head = ("defence", "seed", "accuracy", "gmi", "ked_mi", "brep_mi", *(f"MSE, {one['reading']}" for one in ASKING))
    lines = [
        (
            f"`{row['row']}`",
            str(row["seed"]),
            f"{row['metrics']['utility/accuracy']:.3f}",
            *(_cell(row, f"{attack['name']}/attacker_accuracy", "{:.2f}") for attack in HOLDING),
            *(_cell(row, f"{label}/mse", "{:.4f}") for label in numbered([one["name"] for one in ASKING])),
        )
        for row in rows
    ]
    done = {(row["row"], row["seed"]) for row in rows}
    missing = [f"{row} (seed {seed})" for row in (*TRAINING, *ANSWERS) for seed in SEEDS if (row, seed) not in done]
    notes = [_known(row) for row in rows if row["row"] == "none"]
    notes += [_paired(row, control) for row in rows for control in rows if _is_control(control, row)]
    if missing:
        notes.append(f"Not measured: {', '.join(missing)}.")
    return f"### {data}\n\n" + (table(head, lines) + "\n\n" if lines else "") + "\n".join(notes)


def _known(row: Mapping[str, Any]) -> str:
    numbers = row["metrics"]
    return (
        f"Seed {row['seed']}: chance is {numbers['inversion/chance_accuracy']:.2f}; the judge reads"
        f" {numbers['inversion/judge_accuracy']:.2f} of untouched originals; an attacker that is told the label alone errs"
        f" by {numbers['inversion/baseline_mse']:.4f}; without a defence the decoder errs by"
        f" {numbers['inversion/training_based/heldout_mse']:.4f} on test images."
    )


def _is_control(control: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    return bool(
        control["seed"] == row["seed"] and row["row"] == control["row"].replace("output_noise", "lpa") != control["row"]
    )


def _paired(row: Mapping[str, Any], control: Mapping[str, Any]) -> str:
    """Say how much more the decoder errs behind a learnt perturbation than behind a random one, victim by victim."""
    parts = []
    for label, one in zip(numbered([one["name"] for one in ASKING]), ASKING, strict=True):
        own, other = (dict(enumerate(map(float, which["errors"][label].split()))) for which in (row, control))
        found = paired_difference_of(own, other)
        ends = "" if found.low is None else f" [{found.low / 1e5:+.4f}, {(found.high or 0) / 1e5:+.4f}]"
        parts.append(f"{one['reading']} {found.mean / 1e5:+.4f}{ends}")
    return f"`{row['row']}` less `{control['row']}`, seed {row['seed']}, MSE per victim: {', '.join(parts)}."


def _cell(row: Mapping[str, Any], name: str, form: str) -> str:
    numbers = row["metrics"]
    if f"inversion/{name}" not in numbers:
        return "as none" if row["row"] in ANSWERS else "-"
    text = form.format(numbers[f"inversion/{name}"])
    ends = [numbers.get(f"inversion/{name}_{end}") for end in ("low", "high")]
    return text + (f" [{form.format(ends[0])}, {form.format(ends[1])}]" if None not in ends else "")


def render(record: Mapping[str, Any], text: str) -> str:
    """Return a page with the tables between its two marks."""
    made = page(record).replace("\\", r"\\")
    found, count = re.subn(r"(<!-- table: .*? -->\n).*?(\n<!-- end -->)", rf"\g<1>{made}\g<2>", text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"expected the marks of one table, found {count}")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--rows", nargs="+", choices=[*TRAINING, *ANSWERS], default=[*TRAINING, *ANSWERS])
    parser.add_argument("--render", action="store_true", help="write the tables into the page, and measure nothing")
    asked = parser.parse_args(arguments)
    if asked.render:
        PAGE.write_text(render(load(), PAGE.read_text()))
        return
    for seed in asked.seeds:
        for data in asked.data:
            for row in asked.rows:
                known = {**TRAINING, **ANSWERS}[row]["name"] in DEFENSES
                done = any((r["data"], r["seed"], r["row"]) == (data, seed, row) for r in load()["rows"])
                if done or not known:
                    continue
                found = measure(data, seed, row)
                RESULTS.parent.mkdir(parents=True, exist_ok=True)
                RESULTS.write_text(json.dumps({"machine": about(), "rows": [*load()["rows"], found]}, indent=1) + "\n")
                print(found["seconds"], section(data, {"rows": [found]}).splitlines()[4], flush=True)


if __name__ == "__main__":
    main()
