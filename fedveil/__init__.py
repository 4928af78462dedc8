"""What do federated clients' updates leak of their images, and how is it stopped without losing accuracy?

>>> import fedveil as fv
>>> images = fv.load_data("mni152").train.take(range(2))
>>> model = fv.build_model("lenet", image_shape=(1, 32, 32), classes=3)
>>> update, trained = fv.client_update(model, images.floats(), images.labels)
>>> report = fv.audit(model, update, images=images.floats(), labels=images.labels, attacks=[fv.InvertingGradients(steps=2)])
>>> sorted(report.reconstructions)
['inverting_gradients']

Everything here is loaded when it is first used: importing the package costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import nn

    from fedveil.attacks.adaptive.attacks import Adaptive as Adaptive
    from fedveil.attacks.adaptive.attacks import AdaptiveModules as AdaptiveModules
    from fedveil.attacks.adaptive.attacks import TrainedImages as TrainedImages
    from fedveil.attacks.analytic.attack import Analytic as Analytic
    from fedveil.attacks.audit.api import audit as audit
    from fedveil.attacks.audit.capture import client_update as client_update
    from fedveil.attacks.audit.report import AuditReport as AuditReport
    from fedveil.attacks.audit.weights import update_between as update_between
    from fedveil.attacks.base import Attack as Attack
    from fedveil.attacks.base import Knowledge as Knowledge
    from fedveil.attacks.base import Observation as Observation
    from fedveil.attacks.diagnosis import Diagnosis as Diagnosis
    from fedveil.attacks.diagnosis import diagnose as diagnose
    from fedveil.attacks.learned.learning_to_invert import LearningToInvert as LearningToInvert
    from fedveil.attacks.model_inversion.base import InversionKnowledge as InversionKnowledge
    from fedveil.attacks.model_inversion.base import Inverted as Inverted
    from fedveil.attacks.model_inversion.base import ModelInversion as ModelInversion
    from fedveil.attacks.model_inversion.released import Access as Access
    from fedveil.attacks.presets.deep_leakage import DeepLeakage as DeepLeakage
    from fedveil.attacks.presets.denoised import Denoised as Denoised
    from fedveil.attacks.presets.dlg import DLG as DLG
    from fedveil.attacks.presets.gradinversion import GradInversion as GradInversion
    from fedveil.attacks.presets.idlg import IDLG as IDLG
    from fedveil.attacks.presets.inverting_gradients import InvertingGradients as InvertingGradients
    from fedveil.attacks.presets.latent_search import LatentSearch as LatentSearch
    from fedveil.attacks.presets.modern import Modern as Modern
    from fedveil.attacks.presets.surrogate_model import SurrogateModel as SurrogateModel
    from fedveil.attacks.strongest import Strongest as Strongest
    from fedveil.defense.base import Defense as Defense
    from fedveil.defense.base import DefenseContext as DefenseContext
    from fedveil.defense.base import PreparedDefense as PreparedDefense
    from fedveil.defense.base import Surrogate as Surrogate
    from fedveil.defense.base import TrainedOn as TrainedOn
    from fedveil.defense.inverse.learnt import InverseTraining as InverseTraining
    from fedveil.fl.data import load_data as load_data
    from fedveil.fl.data.images import Images as Images
    from fedveil.fl.data.source import Source as Source
    from fedveil.fl.errors import FedveilError as FedveilError
    from fedveil.fl.messages import ClientUpdate as Update
    from fedveil.fl.messages import PrivacyRecord as PrivacyRecord
    from fedveil.fl.messages import Reconstruction as Reconstruction
    from fedveil.fl.messages import ThreatModel as ThreatModel
    from fedveil.fl.strategies import Strategy as Strategy
    from fedveil.orchestrator.run.api import run as run
    from fedveil.orchestrator.run.api import sweep as sweep

__all__ = [
    "DLG",
    "IDLG",
    "Access",
    "Adaptive",
    "AdaptiveModules",
    "Analytic",
    "Attack",
    "AuditReport",
    "DeepLeakage",
    "Defense",
    "DefenseContext",
    "Denoised",
    "Diagnosis",
    "FedveilError",
    "GradInversion",
    "Images",
    "InverseTraining",
    "InversionKnowledge",
    "Inverted",
    "InvertingGradients",
    "Knowledge",
    "LatentSearch",
    "LearningToInvert",
    "ModelInversion",
    "Modern",
    "Observation",
    "PreparedDefense",
    "PrivacyRecord",
    "Reconstruction",
    "Source",
    "Strategy",
    "Strongest",
    "Surrogate",
    "SurrogateModel",
    "ThreatModel",
    "TrainedImages",
    "TrainedOn",
    "Update",
    "audit",
    "build_model",
    "client_update",
    "diagnose",
    "load_data",
    "register_attack",
    "register_data",
    "register_defense",
    "register_model",
    "register_model_inversion",
    "register_strategy",
    "run",
    "sweep",
    "update_between",
]

_MODULES = {
    "Access": "attacks.model_inversion.released",
    "InversionKnowledge": "attacks.model_inversion.base",
    "Inverted": "attacks.model_inversion.base",
    "ModelInversion": "attacks.model_inversion.base",
    "Knowledge": "attacks.base",
    "Observation": "attacks.base",
    "Images": "fl.data.images",
    "TrainedOn": "defense.base",
    "DefenseContext": "defense.base",
    "Adaptive": "attacks.adaptive.attacks",
    "AdaptiveModules": "attacks.adaptive.attacks",
    "Analytic": "attacks.analytic.attack",
    "Attack": "attacks.base",
    "AuditReport": "attacks.audit.report",
    "DeepLeakage": "attacks.presets.deep_leakage",
    "Defense": "defense.base",
    "Diagnosis": "attacks.diagnosis",
    "FedveilError": "fl.errors",
    "InverseTraining": "defense.inverse.learnt",
    "InvertingGradients": "attacks.presets.inverting_gradients",
    "DLG": "attacks.presets.dlg",
    "Denoised": "attacks.presets.denoised",
    "GradInversion": "attacks.presets.gradinversion",
    "IDLG": "attacks.presets.idlg",
    "LatentSearch": "attacks.presets.latent_search",
    "LearningToInvert": "attacks.learned.learning_to_invert",
    "Modern": "attacks.presets.modern",
    "SurrogateModel": "attacks.presets.surrogate_model",
    "PreparedDefense": "defense.base",
    "PrivacyRecord": "fl.messages",
    "Reconstruction": "fl.messages",
    "Source": "fl.data.source",
    "Strategy": "fl.strategies",
    "Strongest": "attacks.strongest",
    "Surrogate": "defense.base",
    "ThreatModel": "fl.messages",
    "TrainedImages": "attacks.adaptive.attacks",
    "Update": "fl.messages:ClientUpdate",
    "audit": "attacks.audit.api",
    "client_update": "attacks.audit.capture",
    "diagnose": "attacks.diagnosis",
    "load_data": "fl.data",
    "run": "orchestrator.run.api",
    "sweep": "orchestrator.run.api",
    "update_between": "attacks.audit.weights",
}
"""Where each name is found: a module of this package, and the name there after a colon where it is another."""

Registered = TypeVar("Registered", bound=type)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'fedveil' has no attribute {name!r}")
    module, _, inner = _MODULES[name].partition(":")
    value = globals()[name] = getattr(import_module(f"fedveil.{module}"), inner or name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def register_defense(name: str) -> Callable[[Registered], Registered]:
    """Return a decorator that enters a `Defense` under ``name``; its fields become the settings of experiment files.

    >>> import dataclasses, fedveil as fv
    >>> @fv.register_defense("darken")
    ... @dataclasses.dataclass(frozen=True, kw_only=True)
    ... class Darken(fv.Defense):
    ...     strength: float = 0.5
    ...     def data(self, x, y, stream):
    ...         return self.strength * x
    >>> Darken().name
    'darken'

    Raises:
        FedveilError: the name is taken.
    """
    from fedveil.defense import DEFENSES

    return DEFENSES.register(name)


def register_attack(name: str) -> Callable[[Registered], Registered]:
    """Return a decorator that enters an `Attack` under ``name``; its fields become options in ``audit.attacks``.

    >>> import dataclasses, torch, fedveil as fv
    >>> @fv.register_attack("grey")
    ... @dataclasses.dataclass(frozen=True, kw_only=True)
    ... class Grey(fv.Attack):
    ...     level: float = 0.5
    ...     def run(self, observations, knowledge, earlier):
    ...         grey = torch.full((1, *knowledge.model.image_shape), self.level)
    ...         return [fv.Reconstruction(grey, o.labels, loss=0.0) for o in observations]
    >>> Grey(level=0.25)
    Grey(level=0.25)

    Raises:
        FedveilError: the name is taken.
    """
    from fedveil.attacks import ATTACKS

    return ATTACKS.register(name)


def register_model_inversion(name: str) -> Callable[[Registered], Registered]:
    """Return a decorator that enters a `ModelInversion` under ``name``, for ``audit.model_inversion``, with its fields.

    >>> import dataclasses, torch, fedveil as fv
    >>> @fv.register_model_inversion("typical")
    ... @dataclasses.dataclass(frozen=True, kw_only=True)
    ... class Typical(fv.ModelInversion):
    ...     access = fv.Access.LABELS
    ...     copies: int = 1
    ...     def run(self, target, knowledge):
    ...         own = knowledge.images.floats()
    ...         said = target.labels(own)
    ...         classes = said.unique().repeat(self.copies)
    ...         return fv.Inverted(torch.stack([own[said == one].mean(0) for one in classes]), classes)
    >>> Typical(copies=3)
    Typical(copies=3)

    Raises:
        FedveilError: the name is taken.
    """
    from fedveil.attacks import MODEL_INVERSIONS

    return MODEL_INVERSIONS.register(name)


def register_model(name: str) -> Callable[[Registered], Registered]:
    """Return a decorator that enters a classifier (an ``nn.Module``) under ``name``, for ``model.name``.

    It is made from the keywords ``image_shape`` (C, H, W) and ``classes``.

    >>> import torch, fedveil as fv
    >>> @fv.register_model("linear")
    ... class Linear(torch.nn.Sequential):
    ...     def __init__(self, *, image_shape, classes):
    ...         inputs = image_shape[0] * image_shape[1] * image_shape[2]
    ...         super().__init__(torch.nn.Flatten(), torch.nn.Linear(inputs, classes))
    >>> fv.build_model("linear", image_shape=(1, 4, 4), classes=2)(torch.zeros(3, 1, 4, 4)).shape
    torch.Size([3, 2])

    Raises:
        FedveilError: the name is taken.
    """
    from fedveil.fl.models import MODELS

    return MODELS.register(name)


def register_strategy(name: str) -> Callable[[Registered], Registered]:
    """Return a decorator that enters an aggregation rule (a `Strategy`) under ``name``, for ``fl.strategy``.

    >>> import dataclasses, fedveil as fv
    >>> @fv.register_strategy("stand_still")
    ... @dataclasses.dataclass(frozen=True)
    ... class StandStill(fv.Strategy):
    ...     def step(self, weights, state, totals, updates):
    ...         return dict(weights), state

    Raises:
        FedveilError: the name is taken.
    """
    from fedveil.fl.strategies import STRATEGIES

    return STRATEGIES.register(name)


def register_data(name: str) -> Callable[[Registered], Registered]:
    """Return a decorator that enters a data set (a `Source`) under ``name``, for ``data.name``.

    >>> import fedveil as fv
    >>> @fv.register_data("brains")
    ... class Brains(fv.Source):
    ...     def load(self, *, size, seed):
    ...         return fv.load_data("mni152", size=size, seed=seed)
    >>> fv.load_data("brains").train.shape
    (1, 32, 32)

    Raises:
        FedveilError: the name is taken.
    """
    from fedveil.fl.data import register_data as register

    return register(name)


def build_model(name: str, *, image_shape: tuple[int, int, int], classes: int, seed: int = 0) -> nn.Module:
    """Build a registered classifier with seeded initial weights.

    >>> import fedveil as fv
    >>> type(fv.build_model("convnet", image_shape=(1, 28, 28), classes=2)).__name__
    'ConvNet'

    Args:
        name: see ``fedveil list models``.
        image_shape: (C, H, W).
        classes: number of classes.
        seed: of the weights.

    Raises:
        FedveilError: the name is unknown, or the model does not take such images.
    """
    from fedveil.fl.models import ModelSpec
    from fedveil.fl.models import build_model as build

    return build(ModelSpec(name, image_shape, classes), seed)
