"""What an attacker believes of images before it has seen an update: terms of the objective beside the distance."""

from __future__ import annotations

from fedveil.attacks.priors.base import Prior, penalty_and_slope
from fedveil.attacks.priors.consistency import GroupConsistency
from fedveil.attacks.priors.denoiser import Denoiser
from fedveil.attacks.priors.image_norm import ImageNorm
from fedveil.attacks.priors.total_variation import TotalVariation

__all__ = ["Denoiser", "GroupConsistency", "ImageNorm", "Prior", "TotalVariation", "penalty_and_slope"]
