"""Defences: what a client does to its data, its loss, its update or its output before anything leaves it."""

from defense.base import DEFENSES, Defense, Preparation, Stack, Surrogate, TrainedOn
from defense.latent import LatentPerturbation
from defense.noise import LatentNoise, NoDefense, PixelNoise
from defense.top_k import TopK
from defense.update_noise import UpdateNoise

__all__ = [
    "DEFENSES",
    "Defense",
    "LatentNoise",
    "LatentPerturbation",
    "NoDefense",
    "PixelNoise",
    "Preparation",
    "Stack",
    "Surrogate",
    "TopK",
    "TrainedOn",
    "UpdateNoise",
]
