"""Attacks as their papers have them, each in a file of its own that says where it departs from its paper."""

from fedveil.attacks.presets.denoised import Denoised
from fedveil.attacks.presets.dlg import DLG
from fedveil.attacks.presets.gradinversion import GradInversion
from fedveil.attacks.presets.idlg import IDLG
from fedveil.attacks.presets.latent_search import LatentSearch
from fedveil.attacks.presets.modern import Modern
from fedveil.attacks.presets.surrogate_model import SurrogateModel

__all__ = ["DLG", "IDLG", "Denoised", "GradInversion", "LatentSearch", "Modern", "SurrogateModel"]
