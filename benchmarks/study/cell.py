"""One cell of the study: a federation behind one defence, attacked; or a row in which nothing is sent."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fedveil as fv
from benchmarks.machine import about
from benchmarks.study.protocols import ATTACKS, AUDIT, LOCAL, MODEL, PROTOCOLS, TIERS

PICTURES = Path("docs/images/study")
PICTURED = ("blood", "pneumonia", "mednist")
"""Sets whose licence allows to show images of them, and whose pictures are kept."""
SILENT = {"public_only": "public", "local_only": "local"}
"""Rows that send nothing, and what their metrics begin with."""
_SCORES = (
    *("mse", "psnr", "ssim", "attacker_accuracy", "adaptive_attacker_accuracy", "identification_rate"),
    *("identification_nearest", "identification_forward", "inverse_error", "inverse_flat", "inverse_steps"),
)


def experiment(data: str, seed: int, defense: str, settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> Any:
    """Return the experiment of a cell, as a file would say it."""
    protocol = PROTOCOLS[data]
    return {
        "experiment": f"study-{data}-{defense}-{seed}",
        "seed": seed,
        "model": MODEL,
        **protocol,
        "defense": {"name": defense, **settings},
        "audit": {**AUDIT, "attacks": ATTACKS},
        "references": {"clients": LOCAL, "augmentation": protocol["fl"]["augmentation"]},
        "tracking": {"uri": "sqlite:///study.db", "images": "grid"},
        "resources": {"workers": 1, "cpus_per_worker": 1},
        **overrides,
    }


def run_cell(
    data: str, seed: int, defense: str, settings: Mapping[str, Any], overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Run a cell, and return its row."""
    began = time.monotonic()
    found = fv.run(experiment(data, seed, defense, settings, overrides))
    (trial,) = found.rows
    seconds = round(time.monotonic() - began, 1)
    row = as_row(data, seed, defense, settings, trial.metrics) | {"wall_seconds": seconds, "machine": about()}
    if data in PICTURED and not (PICTURES / picture_of(row)).exists():
        PICTURES.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found.folders[trial.name] / "reconstruction.png", PICTURES / picture_of(row))
    return row


def as_row(
    data: str,
    seed: int,
    defense: str,
    settings: Mapping[str, Any],
    metrics: Mapping[str, float],
    *,
    victims: int = AUDIT["victims"],
) -> dict[str, Any]:
    """Return a trial's metrics as a row: utility and, by tier of knowledge, privacy.

    Args:
        data: as in `PROTOCOLS`.
        seed: of the trial.
        defense: its name.
        settings: of the defence.
        metrics: of the trial.
        victims: that were asked for.
    """
    tiers = {
        tier: {
            score: round(metrics[f"attack/{attack}/{score}"], 6)
            for score in _SCORES
            if f"attack/{attack}/{score}" in metrics
        }
        for attack, tier in TIERS.items()
    }
    worst = {
        key.removeprefix("privacy/"): round(value, 6) for key, value in metrics.items() if key.startswith("privacy/")
    }
    utility = {
        key.removeprefix("utility/"): round(value, 6) for key, value in metrics.items() if key.startswith("utility/")
    }
    return {
        "data": data,
        "seed": seed,
        "defense": defense,
        "settings": dict(settings),
        "victims": victims - int(metrics.get("privacy/left_out_victims", 0)),
        "utility": utility,
        "privacy": {tier: scores for tier, scores in tiers.items() if scores} | {"worst": worst},
        "cost": {
            key.removeprefix("cost/"): round(value, 2) for key, value in metrics.items() if key.startswith("cost/")
        },
    }


def picture_of(row: Mapping[str, Any]) -> str:
    """Return the name of a row's picture, the same for all seeds."""
    settings = [f"{key}-{value}" for key, value in row["settings"].items()]
    return "-".join([row["data"], row["defense"], *settings]) + ".png"


def untouched(row: Mapping[str, Any]) -> float:
    """Return the accuracy on test images that pass no defence; rows that send nothing have no other."""
    utility = row["utility"]
    return float(utility.get("clean_accuracy", utility["accuracy"]))


def silent_rows(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows that send nothing, from the references that a trial without defence measured beside itself."""
    rows = []
    for defense, prefix in SILENT.items():
        utility = {
            score: row["utility"][f"{prefix}_{score}"]
            for score in ("accuracy", "auc")
            if f"{prefix}_{score}" in row["utility"]
        }
        rows.append(
            {
                "data": row["data"],
                "seed": row["seed"],
                "defense": defense,
                "settings": {},
                "victims": 0,
                "utility": utility,
                "privacy": {},
            }
        )
    return rows
