from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from fedveil.attacks import Knowledge, Observation
from fedveil.attacks.adaptive.own_victims import own_victims
from fedveil.attacks.base import AttackerPreparation
from fedveil.attacks.target.model import target_model
from fedveil.defense.base import Surrogate
from fedveil.defense.noise import PixelNoise
from fedveil.fl.data.images import Images
from fedveil.fl.messages import ThreatModel
from fedveil.fl.models import ModelSpec, build_model

SPEC = ModelSpec("lenet", (1, 12, 12), 2, width=4)
Blobs = Callable[..., Images]
Observe = Callable[..., Observation]


def known(auxiliary: Images, *, labels: bool = True) -> Knowledge:
    target = target_model(build_model(SPEC), image_shape=SPEC.image_shape, classes=SPEC.classes)
    granted = ThreatModel(labels=labels, auxiliary_data=True, defense_algorithm=True)
    return Knowledge(granted, target, torch.device("cpu"), 3, auxiliary=auxiliary)


def test_what_was_rehearsed_is_sent_and_the_original_is_the_truth(blobs: Blobs, observe: Observe) -> None:
    """As behind a defence that makes one image of many."""
    originals = blobs(10, 2, side=12)
    became = Images(255 - originals.pixels, originals.labels)
    preparation = AttackerPreparation(Surrogate(), None, rehearsed=(originals, became))
    like = observe(blobs(2, 1, side=12), SPEC)
    own = own_victims(like, preparation, known(blobs(30, 3, side=12)), 3)
    pool = originals.pixels.tolist()
    rows = [pool.index(image) for one in own for image in one.batch.pixels.tolist()]
    assert len(set(rows)) == len(rows) == 6
    for one in own:
        torch.testing.assert_close(one.trained, 1 - one.batch.floats())


def test_labels_are_told_where_the_victims_are(blobs: Blobs, observe: Observe) -> None:
    like, others = observe(blobs(1, 1, side=12), SPEC), blobs(6, 2, side=12)
    preparation = AttackerPreparation(Surrogate(), None)
    (told, *_), (untold, *_) = (
        own_victims(like, preparation, known(others, labels=labels), 2) for labels in (True, False)
    )
    assert told.observation.labels is not None
    assert torch.equal(told.observation.labels, told.batch.labels)
    assert untold.observation.labels is None


def test_a_batch_seen_in_several_rounds_is_rehearsed_as_often_with_noise_of_its_own(
    blobs: Blobs, observe: Observe
) -> None:
    pixels = PixelNoise(strength=0.2)
    first, second = (observe(blobs(1, 1, side=12), SPEC, number=number) for number in (0, 1))
    preparation = AttackerPreparation(Surrogate(data=pixels.data), None)
    (own, *_) = own_victims(replace(first, repeats=(second,)), preparation, known(blobs(6, 2, side=12)), 1)
    sent, again = (one.update.tensors for one in own.observation.series)
    assert len(own.observation.series) == 2
    assert not any(torch.equal(sent[name], again[name]) for name in sent)
    assert all(one.client == -1 for one in own.observation.series)
