"""One classifier of a kind for all tests: what an attack tries and records for it is kept with it, and costs seconds."""

from __future__ import annotations

from functools import cache

from fedveil.attacks.target.model import TargetModel, target_model
from fedveil.fl.models import ModelSpec, build_model


def own_target(spec: ModelSpec) -> TargetModel:
    """A classifier as an attack needs it, with nothing recorded yet: for runs that are compared bit by bit."""
    return target_model(build_model(spec), image_shape=spec.image_shape, classes=spec.classes)


shared_target = cache(own_target)
