"""Defences: what a client does to its data, its loss, its update or its output before anything leaves it."""

from fedveil.defense.base import DEFENSES, Defense, DefenseContext, PreparedDefense, Surrogate, TrainedOn
from fedveil.defense.latent_autoencoder import LatentAutoencoder
from fedveil.defense.noise import LatentNoise, NoDefense, PixelNoise
from fedveil.defense.stack import Stack
from fedveil.defense.top_k import TopK
from fedveil.defense.update_noise import UpdateNoise

__all__ = [
    "DEFENSES",
    "Defense",
    "DefenseContext",
    "LatentAutoencoder",
    "LatentNoise",
    "NoDefense",
    "PixelNoise",
    "PreparedDefense",
    "Stack",
    "Surrogate",
    "TopK",
    "TrainedOn",
    "UpdateNoise",
]
