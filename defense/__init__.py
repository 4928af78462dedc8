"""Defences: what a client does to its data, its loss, its update or its output before anything leaves it."""

from fedveil.defense.ats import ATS
from fedveil.defense.autoencoder import PublicReconstruction
from fedveil.defense.base import DEFENSES, Defense, DefenseContext, PreparedDefense, Rehearsal, Surrogate, TrainedOn
from fedveil.defense.bido import BiDO
from fedveil.defense.block_average import BlockAverage
from fedveil.defense.blur import Blur
from fedveil.defense.concealed import ConcealedSamples
from fedveil.defense.dgp import DualGradientPruning
from fedveil.defense.dp_sgd import DPSGD
from fedveil.defense.erasing import FixedErasing, PixelDropout, RandomErasing
from fedveil.defense.group_mean import GroupMean
from fedveil.defense.instahide import InstaHide
from fedveil.defense.latent.defence import LatentPerturbation
from fedveil.defense.latent_autoencoder import LatentAutoencoder
from fedveil.defense.mixup import MixUp
from fedveil.defense.noise import LatentNoise, NoDefense, PixelNoise
from fedveil.defense.orthogonal import OrthogonalPerturbation
from fedveil.defense.outpost import Outpost
from fedveil.defense.precode import Precode
from fedveil.defense.quantisation import Quantisation
from fedveil.defense.released.controls import OutputNoise, OutputRounding
from fedveil.defense.released.lfp import LabelFlippingPoisoning
from fedveil.defense.released.lpa import LabelPreservingPoisoning
from fedveil.defense.secure_aggregation import SecureAggregation
from fedveil.defense.sign import Sign
from fedveil.defense.soteria import Soteria
from fedveil.defense.stack import Stack
from fedveil.defense.top_k import TopK
from fedveil.defense.update_noise import UpdateNoise

__all__ = [
    "ATS",
    "DEFENSES",
    "DPSGD",
    "BiDO",
    "BlockAverage",
    "Blur",
    "ConcealedSamples",
    "Defense",
    "DefenseContext",
    "DualGradientPruning",
    "FixedErasing",
    "GroupMean",
    "InstaHide",
    "LabelFlippingPoisoning",
    "LabelPreservingPoisoning",
    "LatentAutoencoder",
    "LatentNoise",
    "LatentPerturbation",
    "MixUp",
    "NoDefense",
    "OrthogonalPerturbation",
    "Outpost",
    "OutputNoise",
    "OutputRounding",
    "PixelDropout",
    "PixelNoise",
    "Precode",
    "PreparedDefense",
    "PublicReconstruction",
    "Quantisation",
    "RandomErasing",
    "Rehearsal",
    "SecureAggregation",
    "Sign",
    "Soteria",
    "Stack",
    "Surrogate",
    "TopK",
    "TrainedOn",
    "UpdateNoise",
]
