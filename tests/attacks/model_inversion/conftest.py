from __future__ import annotations

import pytest
import torch
from bands import CLASSES, SHAPE, Templates, bands

from fedveil.attacks.model_inversion.released import ReleasedModel
from fedveil.attacks.model_inversion.scoring import InversionScorer, InversionVictims
from fedveil.attacks.scoring import Judge, JudgeQuality

torch.set_num_threads(1)


@pytest.fixture
def told() -> ReleasedModel:
    """A classifier that knows the patterns."""
    return ReleasedModel(Templates(40.0), None, SHAPE, CLASSES)


@pytest.fixture
def dumb() -> ReleasedModel:
    """A classifier that answers all alike."""
    return ReleasedModel(Templates(0.0), None, SHAPE, CLASSES)


@pytest.fixture
def victims() -> InversionVictims:
    return InversionVictims(bands(12), bands(6))


@pytest.fixture
def scorer() -> InversionScorer:
    """The judge is the classifier that knows the patterns."""
    quality = JudgeQuality.of([0, 1, 2] * 20, [0, 1, 2] * 20, classes=CLASSES)
    return InversionScorer(Judge(Templates(40.0)), quality, CLASSES)
