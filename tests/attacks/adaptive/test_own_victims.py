from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fedveil.attacks import Knowledge, Observation
from fedveil.attacks.adaptive.own_victims import others_than, own_victims
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


def known(auxiliary: Images, *, labels: bool = True, spec: ModelSpec = SPEC) -> Knowledge:
    target = target_model(build_model(spec), image_shape=spec.image_shape, classes=spec.classes)
    granted = ThreatModel(labels=labels, auxiliary_data=True, defense_algorithm=True)
    return Knowledge(granted, target, torch.device("cpu"), 3, auxiliary=auxiliary)


def test_what_was_rehearsed_is_sent_and_the_original_is_the_truth(blobs: Blobs, observe: Observe) -> None:
    """As behind a defence that makes one image of many."""
    originals = blobs(10, 2, side=12)
    became = Images(255 - originals.pixels, originals.labels)
    preparation = AttackerPreparation(Surrogate(), None, unlearnt=(originals, became))
    like = observe(blobs(2, 1, side=12), SPEC)
    own = own_victims(like, preparation, known(blobs(30, 3, side=12)), 3)
    pool = originals.pixels.tolist()
    rows = [pool.index(image) for one in own for image in one.batch.pixels.tolist()]
    assert len(set(rows)) == len(rows) == 6
    for one in own:
        torch.testing.assert_close(one.trained, 1 - one.batch.floats())


def test_victims_are_images_that_the_inverse_has_not_learnt(blobs: Blobs, observe: Observe) -> None:
    auxiliary = blobs(30, 3, side=12)
    spared = auxiliary.take(torch.arange(24, 30))
    preparation = AttackerPreparation(Surrogate(data=PixelNoise().data), None, unlearnt=(spared, spared))
    own = own_victims(observe(blobs(2, 1, side=12), SPEC), preparation, known(auxiliary), 5)
    assert sum(len(one.batch) for one in own) == 6
    pool = spared.pixels.tolist()
    assert all(image in pool for one in own for image in one.batch.pixels.tolist())


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


@pytest.mark.parametrize("count", [1, 4])
def test_the_statistics_of_the_batch_are_sent_as_clients_send_them(blobs: Blobs, observe: Observe, count: int) -> None:
    spec = replace(SPEC, name="resnet20", norm="batch")
    pool = blobs(count, 2, side=12)
    client = observe(pool, spec, learning_rate=0.1)
    (own, *_) = own_victims(client, AttackerPreparation(Surrogate(), None), known(pool, spec=spec), 1)
    assert client.update.buffers
    sent = own.observation.update.buffers
    assert sent.keys() == client.update.buffers.keys()
    for name, change in client.update.buffers.items():
        torch.testing.assert_close(sent[name], change, atol=1e-5, rtol=1e-4)


def test_statistics_that_a_client_keeps_to_itself_are_not_sent(blobs: Blobs, observe: Observe) -> None:
    spec = replace(SPEC, name="resnet20", norm="batch")
    client = observe(blobs(2, 1, side=12), spec)
    silent = replace(client, update=replace(client.update, buffers={}))
    (own, *_) = own_victims(silent, AttackerPreparation(Surrogate(), None), known(blobs(2, 1, side=12), spec=spec), 1)
    assert not own.observation.update.buffers


def test_others_are_all_images_but_the_victims(blobs: Blobs, observe: Observe) -> None:
    pool = blobs(9, 3, side=12)
    own = own_victims(observe(blobs(2, 1, side=12), SPEC), AttackerPreparation(Surrogate(), None), known(pool), 3)
    others = others_than(own, pool)
    taken = [image for one in own for image in one.batch.pixels.tolist()]
    assert len(others) == 3
    assert sorted(taken + others.pixels.tolist()) == sorted(pool.pixels.tolist())
    assert len(others_than(own, pool.take(torch.arange(0)))) == 0
