"""Attacks on client updates, and the honest scoring of what they rebuild."""

import warnings

from fedveil.attacks.adaptive.attacks import Adaptive, AdaptiveModules, TrainedImages
from fedveil.attacks.analytic.attack import Analytic
from fedveil.attacks.base import ATTACKS, Attack, Earlier, Knowledge, Observation, attack_labels
from fedveil.attacks.baseline import Baseline
from fedveil.attacks.learned.learning_to_invert import LearningToInvert
from fedveil.attacks.model_inversion.base import MODEL_INVERSIONS, ModelInversion
from fedveil.attacks.model_inversion.brep_mi import BrepMi
from fedveil.attacks.model_inversion.gmi import Gmi
from fedveil.attacks.model_inversion.ked_mi import KedMi
from fedveil.attacks.model_inversion.training_based import TrainingBased
from fedveil.attacks.presets import DLG, IDLG, Denoised, GradInversion, LatentSearch, Modern, SurrogateModel
from fedveil.attacks.presets.deep_leakage import DeepLeakage
from fedveil.attacks.presets.inverting_gradients import InvertingGradients
from fedveil.attacks.strongest import Strongest
from fedveil.defense.inverse.learnt import InverseTraining

# PyTorch compiles parts of its own forward mode by what it has since deprecated.
warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)

__all__ = [
    "ATTACKS",
    "DLG",
    "IDLG",
    "MODEL_INVERSIONS",
    "Adaptive",
    "AdaptiveModules",
    "Analytic",
    "Attack",
    "Baseline",
    "BrepMi",
    "DeepLeakage",
    "Denoised",
    "Earlier",
    "Gmi",
    "GradInversion",
    "InverseTraining",
    "InvertingGradients",
    "KedMi",
    "Knowledge",
    "LatentSearch",
    "LearningToInvert",
    "ModelInversion",
    "Modern",
    "Observation",
    "Strongest",
    "SurrogateModel",
    "TrainedImages",
    "TrainingBased",
    "attack_labels",
]
