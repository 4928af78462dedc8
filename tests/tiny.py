"""A data set and an experiment that take a second: 16 px images whose class is where the bright bar is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def write_bars(path: Path, train: int = 90, test: int = 30) -> Path:
    """Write an .npz file with MedMNIST's keys and three classes."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", train), ("val", 12), ("test", test)):
        labels = np.arange(count) % 3
        images = rng.integers(0, 60, (count, 16, 16), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[5 * label : 5 * label + 5] += 150
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images, labels[:, None]
    np.savez(path, **arrays)
    return path


def share_cache(folder: Path, modules: Path) -> Path:
    """Let what is learnt on public images alone be learnt once for all runs; return ``folder``.

    The judge of classes is: it takes three times as long as the rest of a tiny run.

    Args:
        folder: in which runs start; is made if need be.
        modules: what is shared.
    """
    cache = folder / "runs" / "cache"
    cache.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    cache.symlink_to(modules, target_is_directory=True)
    return folder


TINY_INVERSION = {"name": "inverting_gradients", "steps": 3}
TINY_INVERSE = {"steps": 3, "batch_size": 8, "width": 8}


def tiny_experiment(data: Path, **sections: Any) -> dict[str, Any]:
    """Return a raw experiment on such a file; ``sections`` are merged in, one level deep."""
    raw: dict[str, Any] = {
        "experiment": "tiny",
        "data": {"name": f"npz:{data}", "public_fraction": 0.1, "auxiliary_fraction": 0.2},
        "model": {"name": "convnet", "width": 4},
        "fl": {"clients": 3, "rounds": 2, "batch_size": 8, "learning_rate": 0.1},
        "references": {"measure": False},
        "audit": {
            "rounds": [0, "last"],
            "victims": 4,
            "attacks": [
                TINY_INVERSION,
                {
                    "name": "adaptive_modules",
                    "inversion": TINY_INVERSION,
                    "inverse": TINY_INVERSE,
                    "calibration": 4,  # the least that teaches anything
                },
            ],
            "gallery": 20,
        },
        "tracking": {"images": "grid"},
        "resources": {"workers": 1, "cpus_per_worker": 1},  # the start of a process takes longer than all the rest
    }
    for name, section in sections.items():
        raw[name] = {**raw.get(name, {}), **section} if isinstance(section, dict) else section
    return raw


TINY_GAN = {"steps": 2, "batch_size": 8, "width": 2, "latent": 4}
TINY_MODEL_INVERSIONS = [
    {"name": "gmi", "gan": TINY_GAN, "steps": 2, "per_class": 2},
    {"name": "ked_mi", "gan": TINY_GAN, "steps": 2, "per_class": 2},
    {"name": "brep_mi", "gan": TINY_GAN, "steps": 2, "per_class": 2, "points": 2, "tries": 8},
    {"name": "training_based", "decoder": {"steps": 3, "width": 2}},
    {"name": "training_based", "reading": "rounded", "decoder": {"steps": 3, "width": 2}},
]
"""Attacks on the released model that learn nothing."""

TINY_LATENT = {"name": "latent_autoencoder", "steps": 2, "client_steps": 1, "public_steps": 2}

PLUGIN = '''
from dataclasses import dataclass

import torch

import fedveil as fv


@fv.register_defense("darken")
@dataclass(frozen=True, kw_only=True)
class Darken(fv.Defense):
    strength: float = 0.5

    def data(self, x, y, stream):
        return self.strength * x


@fv.register_attack("grey")
@dataclass(frozen=True, kw_only=True)
class Grey(fv.Attack):
    """Answers with one grey, whatever it sees."""

    level: float = 0.5

    def run(self, observations, knowledge, earlier):
        grey = torch.full((1, *knowledge.model.image_shape), self.level)
        return [fv.Reconstruction(grey, o.labels, loss=0.0) for o in observations]
'''
"""A user's own file."""
