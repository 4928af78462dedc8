"""Surrogate model extension (Zhu, Yao and Blaschko 2023, arXiv 2306.00127): several local steps as one gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedveil.attacks.base import ATTACKS
from fedveil.attacks.matching.attack import Place
from fedveil.attacks.presets.inverting_gradients import InvertingGradients


@ATTACKS.register("surrogate_model")
@dataclass(frozen=True, kw_only=True)
class SurrogateModel(InvertingGradients):
    """Match what several steps sent by one gradient, at a place between the weights before and after.

    It departs from the paper in this: the place is searched among five, by short runs of which each victim goes on with the
    one of the lowest own loss, instead of learnt beside the images. It needs neither the number of steps nor the rate.

    >>> import fedveil as fv
    >>> fv.SurrogateModel(steps=100).place
    'searched'
    """

    name: ClassVar[str] = "surrogate_model"
    place: Place = "searched"
