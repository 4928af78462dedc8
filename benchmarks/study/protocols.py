"""Data sets in which federating pays, and the defences that are compared on them."""

from __future__ import annotations

from typing import Any

SEEDS = (0, 1, 2)

_TRAINING: dict[str, Any] = {
    "batch_size": 64,
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "start": "public",
    "replay_public": 0.25,
}

PROTOCOLS: dict[str, dict[str, Any]] = {
    # 60 public images, 2,000 of the attacker, 32 clients of about 310; with 8 of about 1,240 not federating wins
    "blood": {
        "data": {
            "name": "npz:pbc_blood_28.npz",
            "public_fraction": 0.005,
            "auxiliary_fraction": 0.168,
            "partition": {"kind": "dirichlet", "alpha": 1.0},
        },
        "fl": {
            **_TRAINING,
            "clients": 32,
            "cohort": 0.25,
            "rounds": 24,
            "local_steps": 50,
            "learning_rate_decay": 0.9,
            "augmentation": ["flip", "transpose", "shift"],
        },
    },
    # pooled, since its own test split is shifted; 40 public images, 2,000 of the attacker, 8 clients of about 360
    "pneumonia": {
        "data": {
            "name": "pneumoniamnist",
            "pool": True,
            "public_fraction": 0.0085,
            "auxiliary_fraction": 0.42,
            "partition": {"kind": "dirichlet", "alpha": 1.0},
        },
        "fl": {
            **_TRAINING,
            "clients": 8,
            "rounds": 12,
            "local_steps": 30,
            "learning_rate_decay": 0.82,
            "augmentation": ["flip", "shift"],
        },
    },
    # 200 public images, 2,000 of the attacker, 8 clients of about 770
    "cifar10": {
        "data": {
            "name": "npz:cifar10_subset.npz",
            "public_fraction": 0.024,
            "auxiliary_fraction": 0.24,
            "partition": {"kind": "dirichlet", "alpha": 1.0},
        },
        "fl": {
            **_TRAINING,
            "clients": 8,
            "rounds": 15,
            "local_steps": 50,
            "learning_rate_decay": 0.85,
            "augmentation": ["flip", "shift"],
        },
    },
    # six kinds of picture, 64 px: at half their size
    "mednist": {
        "data": {
            "name": "npz:mednist_64_subset.npz",
            "limit": 6000,
            "public_fraction": 0.006,
            "auxiliary_fraction": 0.33,
            "partition": {"kind": "dirichlet", "alpha": 0.3},
        },
        "fl": {
            **_TRAINING,
            "clients": 8,
            "rounds": 8,
            "local_steps": 30,
            "learning_rate_decay": 0.75,
            "augmentation": ["shift"],
        },
    },
}

ATTACKS: list[dict[str, Any]] = [
    {"name": "adaptive", "inversion": {"name": "strongest", "steps": 100}, "inverse": {"steps": 2000}},
    {"name": "trained_images", "inverse": {"steps": 2000}},
]
TIERS = {"adaptive": "algorithm", "adaptive_modules": "modules", "trained_images": "trained_images"}
"""Which attack answers for which tier of knowledge."""

MODEL: dict[str, Any] = {"name": "convnet", "width": 16}
AUDIT: dict[str, Any] = {
    "rounds": ["last"],
    "victims": 256,
    "balanced": True,
    "gallery": 1000,
    "chunks": 1,
    "membership": True,
}

LOCAL = 4
"""Clients whose own images are trained on alone."""

FAMILIES: dict[str, tuple[dict[str, Any], ...]] = {
    "none": ({},),
    "pixel_noise": ({"strength": 0.05}, {"strength": 0.1}, {"strength": 0.2}),
    "latent_noise": ({"strength": 0.3}, {"strength": 0.6}, {"strength": 1.2}),
    "block_average": ({"size": 2}, {"size": 4}, {"size": 7}),
    "autoencoder": ({"public_steps": 500}, {"public_steps": 1000}, {"public_steps": 2000}),
    "group_mean": ({"k": 3}, {"k": 5}, {"k": 10}),
    "top_k": ({"keep": 0.3}, {"keep": 0.1}, {"keep": 0.03}),
    "update_noise": ({"strength": 0.001}, {"strength": 0.003}, {"strength": 0.01}),
    "latent_autoencoder": ({"strength": 0.5}, {"strength": 1.0}, {"strength": 2.0}),
    "latent": ({"k": 5}, {"k": 10}, {"k": 10, "dimensions": 96}),
}
"""Of each family as many settings, chosen by validation images."""
