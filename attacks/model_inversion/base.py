"""The `ModelInversion` interface: what an attacker on a released classifier holds, and what it makes of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedveil.attacks.model_inversion.gan import Gan, GanTraining
from fedveil.attacks.model_inversion.released import (
    Access,
    ConfidenceTarget,
    LabelTarget,
    Target,
    WeightsTarget,
)
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.registry import Registry

MODEL_INVERSIONS: Registry[type[ModelInversion]] = Registry("model inversion")

_VIEWS: Mapping[Access, type[LabelTarget]] = {
    Access.LABELS: LabelTarget,
    Access.CONFIDENCES: ConfidenceTarget,
    Access.WEIGHTS: WeightsTarget,
}


@dataclass(frozen=True, eq=False)
class InversionKnowledge:
    """What the attacker holds beside its view of the classifier.

    >>> import torch, fedveil as fv
    >>> own = fv.load_data("mni152", size=28).val
    >>> fv.InversionKnowledge(own, torch.device("cpu"), seed=0).observed is None
    True

    Attributes:
        images: its own. The classifier never saw them, and the judge of its results did not either.
        device: where to compute.
        seed: of its randomness.
        observed: (v, k) what the release answered to the images of v victims; None where the attack asks for none, or where
            confidences are not granted.
        gans: generators that were trained on ``images`` alone, by how.
    """

    images: Images
    device: torch.device
    seed: int
    observed: Tensor | None = None
    gans: Mapping[GanTraining, Gan] = field(default_factory=dict)

    def gan(self, training: GanTraining) -> Gan:
        """Return the generator of that training.

        Raises:
            FedveilError: there is none.
        """
        if training not in self.gans:
            raise FedveilError(f"no generator is trained as {training}; see attacks.model_inversion.audit")
        return self.gans[training]


@dataclass(frozen=True, eq=False)
class Inverted:
    """What an attack returns. It holds no score against the truth: the attacker has none.

    >>> import torch, fedveil as fv
    >>> painted = fv.Inverted(torch.full((2, 1, 28, 28), 0.5), torch.tensor([0, 1]), {"steps": 1.0})
    >>> painted.classes.tolist()
    [0, 1]

    Attributes:
        images: (m, C, H, W) in [0, 1], on the CPU.
        classes: (m,) int64, the class that each image is to show; None where the images are those behind the observed
            answers, one for each, in their order.
        told: numbers about the attack itself, by name.
    """

    images: Tensor
    classes: Tensor | None
    told: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModelInversion(ABC):
    """An attack on a released classifier, with its hyperparameters; `repr` shows exactly these.

    >>> from dataclasses import dataclass
    >>> import torch, fedveil as fv
    >>> @dataclass(frozen=True, kw_only=True)
    ... class Grey(fv.ModelInversion):
    ...     name, access = "grey", fv.Access.LABELS
    ...     level: float = 0.5
    ...     def run(self, target, knowledge):
    ...         return fv.Inverted(torch.full((1, *target.shape), self.level), torch.tensor([0]))
    >>> Grey(level=0.25)
    Grey(level=0.25)
    """

    name: ClassVar[str]
    access: ClassVar[Access]
    """What it has to be granted."""
    rebuilds: ClassVar[bool] = False
    """It rebuilds the images behind observed answers; otherwise it paints what a class looks like."""

    @property
    def prior(self) -> GanTraining | None:
        """The generator that it starts from, trained on the attacker's images alone; None where it needs none such."""
        return None

    @property
    def reckons(self) -> bool:
        """It reads answers in another way than they come, in case a defence has changed them, or reads none."""
        return self.access is not Access.CONFIDENCES

    def __call__(self, target: Target, knowledge: InversionKnowledge) -> Inverted:
        """Attack a classifier.

        Args:
            target: the view that `access` grants.
            knowledge: what the attacker holds.

        Raises:
            FedveilError: the attack is handed less or more than its grant, or returns something else than such images.
        """
        if type(target) is not _VIEWS[self.access]:
            raise FedveilError(
                f"attack {self.name!r} is for {_VIEWS[self.access].__name__}, given {type(target).__name__}"
            )
        if (knowledge.observed is None) is self.rebuilds:
            has = (
                "needs answers to the victims' images"
                if self.rebuilds
                else "is handed answers that it does not ask for"
            )
            raise FedveilError(f"attack {self.name!r} {has} (observed)")
        found = self.run(target, knowledge)
        count = len(knowledge.observed) if knowledge.observed is not None else len(found.images)
        if found.images.shape != (count, *target.shape) or (found.classes is None) is not self.rebuilds:
            raise FedveilError(
                f"attack {self.name!r}: expected ({count}, {', '.join(map(str, target.shape))}) images"
                f" {'without' if self.rebuilds else 'with'} classes, got {tuple(found.images.shape)}"
            )
        return found

    @abstractmethod
    def run(self, target: Any, knowledge: InversionKnowledge) -> Inverted:
        """Do the attack; see `__call__`, which has checked the grants."""
