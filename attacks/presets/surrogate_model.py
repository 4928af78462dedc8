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
    """Match what several steps sent by one gradient, at a place between the weights before and after, then by the steps.

    It departs from the paper in two details. The place is searched among five, by short runs of which each victim goes on
    with the one of the lowest own loss, instead of learnt beside the images; that and the match there take half of the
    steps. The other half refines the images by replaying the client's steps. Where its learning rate is wrong, the first
    half explains the update better by its own loss, and is the result, which as in the paper needs no rate.

    >>> import fedveil as fv
    >>> fv.SurrogateModel(steps=100).place
    'unrolled'
    """

    name: ClassVar[str] = "surrogate_model"
    place: Place = "unrolled"
