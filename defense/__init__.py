"""Defences: what a client does to its data, its loss, its update or its output before anything leaves it."""

from fedveil.defense.autoencoder import PublicReconstruction
from fedveil.defense.base import DEFENSES, Defense, DefenseContext, PreparedDefense, Rehearsal, Surrogate, TrainedOn
from fedveil.defense.block_average import BlockAverage
from fedveil.defense.dgp import DualGradientPruning
from fedveil.defense.dp_sgd import DPSGD
from fedveil.defense.group_mean import GroupMean
from fedveil.defense.latent.defence import LatentPerturbation
from fedveil.defense.latent_autoencoder import LatentAutoencoder
from fedveil.defense.noise import LatentNoise, NoDefense, PixelNoise
from fedveil.defense.secure_aggregation import SecureAggregation
from fedveil.defense.stack import Stack
from fedveil.defense.top_k import TopK
from fedveil.defense.update_noise import UpdateNoise

__all__ = [
    "DEFENSES",
    "DPSGD",
    "BlockAverage",
    "Defense",
    "DefenseContext",
    "DualGradientPruning",
    "GroupMean",
    "LatentAutoencoder",
    "LatentNoise",
    "LatentPerturbation",
    "NoDefense",
    "PixelNoise",
    "PreparedDefense",
    "PublicReconstruction",
    "Rehearsal",
    "SecureAggregation",
    "Stack",
    "Surrogate",
    "TopK",
    "TrainedOn",
    "UpdateNoise",
]
