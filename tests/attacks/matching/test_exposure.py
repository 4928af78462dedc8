from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from fedveil.attacks.base import Knowledge, Observation
from fedveil.attacks.matching.exposure import BRIGHT, USUAL, exposed
from fedveil.attacks.matching.yardstick import misfit
from fedveil.attacks.target.model import target_model
from fedveil.fl.data.images import Images
from fedveil.fl.messages import Reconstruction, ThreatModel
from fedveil.fl.models import ModelSpec, build_model

Blobs = Callable[..., Images]
Observe = Callable[..., Observation]


def known(spec: ModelSpec, auxiliary: Images | None = None) -> Knowledge:
    target = target_model(build_model(spec), image_shape=spec.image_shape, classes=spec.classes)
    return Knowledge(ThreatModel(labels=True), target, torch.device("cpu"), 3, auxiliary)


def spec_of(norm: str) -> ModelSpec:
    return ModelSpec("convnet", (1, 16, 16), 2, norm=norm, width=8)


def set_right(images: Images, factors: list[float], knowledge: Knowledge, observation: Observation) -> Reconstruction:
    """What becomes of the images behind an update, each brighter or darker by a factor."""
    changed = images.floats() * torch.tensor(factors).view(-1, 1, 1, 1)
    found = Reconstruction(changed, images.labels, 0.0)
    (loss,) = misfit([observation], [found], knowledge)
    (result,) = exposed([observation], [replace(found, loss=loss + 1e-3)], knowledge)
    return result


def test_each_image_becomes_as_bright_as_usual_where_group_norm_hides_it(blobs: Blobs, observe: Observe) -> None:
    spec, victims = spec_of("group"), blobs(2, 1)
    found = set_right(victims, [0.4, 0.7], known(spec), observe(victims, spec))
    bright = found.images.flatten(1).quantile(BRIGHT, dim=1)
    torch.testing.assert_close(bright, torch.full((2,), USUAL))
    assert found.scale_guessed


def test_auxiliary_images_say_how_bright_a_class_is(blobs: Blobs, observe: Observe) -> None:
    spec, victims, others = spec_of("group"), blobs(2, 1), blobs(40, 2)
    shades = torch.where(others.labels == victims.labels[0], 200.0, 120.0).view(-1, 1, 1, 1)
    auxiliary = replace(others, pixels=(others.floats() * shades).round().to(torch.uint8))
    found = set_right(victims, [0.4, 0.7], known(spec, auxiliary), observe(victims, spec))
    brightness = auxiliary.floats().flatten(1).quantile(BRIGHT, dim=1)
    usual = torch.stack([brightness[auxiliary.labels == label].mean() for label in victims.labels])
    torch.testing.assert_close(found.images.flatten(1).quantile(BRIGHT, dim=1), usual)
    # A class of which there are none is taken to be as bright as all.
    of_one = auxiliary.take((auxiliary.labels == victims.labels[0]).nonzero().flatten())
    elsewhere = replace(victims, labels=1 - victims.labels[:1].expand(2))
    found = set_right(elsewhere, [0.4, 0.7], known(spec, of_one), observe(elsewhere, spec))
    everywhere = of_one.floats().flatten(1).quantile(BRIGHT, dim=1).mean()
    torch.testing.assert_close(found.images.flatten(1).quantile(BRIGHT, dim=1), everywhere.expand(2))


def test_nothing_changes_where_brightness_shows(blobs: Blobs, observe: Observe) -> None:
    spec, victims = spec_of("none"), blobs(2, 1)
    found = set_right(victims, [0.9, 0.9], known(spec), observe(victims, spec))
    torch.testing.assert_close(found.images, 0.9 * victims.floats())
    assert not found.scale_guessed


def test_batch_norm_hides_the_brightness_of_a_batch_alone(blobs: Blobs, observe: Observe) -> None:
    spec, victims = spec_of("batch"), blobs(2, 1)
    # One image is far darker than the other: only the whole batch can be scaled, until the brighter one is at the top.
    shades = torch.tensor([255, 100]).view(-1, 1, 1, 1)
    batch = replace(victims, pixels=(victims.floats() * shades).round().to(torch.uint8))
    found = set_right(batch, [0.5, 0.5], known(spec), observe(batch, spec))
    torch.testing.assert_close(found.images, batch.floats() / batch.floats().max())
