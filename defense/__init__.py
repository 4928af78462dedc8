"""Defences: what a client does to its data, its loss, its update or its output before anything leaves it."""

from fedveil.defense.autoencoder import PublicReconstruction
from fedveil.defense.base import DEFENSES, Defense, DefenseContext, PreparedDefense, Rehearsal, Surrogate, TrainedOn
from fedveil.defense.block_average import BlockAverage
from fedveil.defense.group_mean import GroupMean
from fedveil.defense.latent.defence import LatentPerturbation
from fedveil.defense.latent_autoencoder import LatentAutoencoder
from fedveil.defense.noise import LatentNoise, NoDefense, PixelNoise
from fedveil.defense.released.controls import OutputNoise, OutputRounding
from fedveil.defense.released.lfp import LabelFlippingPoisoning
from fedveil.defense.released.lpa import LabelPreservingPoisoning
from fedveil.defense.stack import Stack
from fedveil.defense.top_k import TopK
from fedveil.defense.update_noise import UpdateNoise

__all__ = [
    "DEFENSES",
    "BlockAverage",
    "Defense",
    "DefenseContext",
    "GroupMean",
    "LabelFlippingPoisoning",
    "LabelPreservingPoisoning",
    "LatentAutoencoder",
    "LatentNoise",
    "LatentPerturbation",
    "NoDefense",
    "OutputNoise",
    "OutputRounding",
    "PixelNoise",
    "PreparedDefense",
    "PublicReconstruction",
    "Rehearsal",
    "Stack",
    "Surrogate",
    "TopK",
    "TrainedOn",
    "UpdateNoise",
]
