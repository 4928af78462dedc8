from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fedveil.attacks import Knowledge, Observation
from fedveil.attacks.matching.yardstick import misfit
from fedveil.attacks.target.model import target_model
from fedveil.fl.data.images import Images
from fedveil.fl.messages import Reconstruction, ThreatModel
from fedveil.fl.models import ModelSpec, build_model
from fedveil.fl.optimizers import SGD, Adam, LocalOptimizer

SPEC = ModelSpec("lenet", (1, 16, 16), 2, width=8)

Blobs = Callable[..., Images]
Observe = Callable[..., Observation]


def known(spec: ModelSpec = SPEC) -> Knowledge:
    target = target_model(build_model(spec), image_shape=spec.image_shape, classes=spec.classes)
    return Knowledge(ThreatModel(), target, torch.device("cpu"), 3)


def each(images: Images, observe: Observe, spec: ModelSpec = SPEC, **options: object) -> list[Observation]:
    return [observe(images.take(torch.tensor([i])), spec, number=i, client=i, **options) for i in range(len(images))]


@pytest.mark.parametrize(
    "spec", [SPEC, ModelSpec("convnet", (1, 16, 16), 2, norm="batch", width=4)], ids=lambda s: s.name
)
@pytest.mark.parametrize("steps", [1, 4])
def test_the_truth_explains_the_update_and_nothing_else_does(
    spec: ModelSpec, steps: int, blobs: Blobs, observe: Observe
) -> None:
    victims = blobs(3, 1)
    observations = each(victims, observe, spec, steps=steps, learning_rate=0.1)
    truth = [Reconstruction(x[None], y[None], 0.0) for x, y in zip(victims.floats(), victims.labels, strict=True)]
    assert max(misfit(observations, truth, known(spec))) < 1e-9
    blurred = [replace(one, images=one.images * 0.9 + 0.05) for one in truth]
    grey = [replace(one, images=torch.full_like(one.images, 0.5)) for one in truth]
    near, far = misfit(observations, blurred, known(spec)), misfit(observations, grey, known(spec))
    assert all(1e-7 < one < other for one, other in zip(near, far, strict=True))
    assert misfit(observations[1:2], truth[1:2], known(spec)) == pytest.approx(
        misfit(observations, truth, known(spec))[1:2], abs=1e-10
    )


def test_several_steps_are_replayed_at_the_clients_rate(blobs: Blobs, observe: Observe) -> None:
    victims = blobs(1, 1)
    (observation,) = each(victims, observe, steps=4, learning_rate=0.5)
    truth = [Reconstruction(victims.floats(), victims.labels, 0.0)]
    other = replace(observation, update=replace(observation.update, learning_rate=0.05))
    assert misfit([observation], truth, known())[0] < 1e-9
    assert misfit([other], truth, known())[0] > 1e-5


@pytest.mark.parametrize("rule", [SGD(momentum=0.9, weight_decay=0.1), Adam()], ids=repr)
def test_several_steps_are_replayed_with_the_clients_optimiser(
    rule: LocalOptimizer, blobs: Blobs, observe: Observe
) -> None:
    victims = blobs(1, 1)
    (observation,) = each(victims, observe, steps=4, optimizer=rule)
    truth = [Reconstruction(victims.floats(), victims.labels, 0.0)]
    other = replace(observation, update=replace(observation.update, optimizer=SGD()))
    assert misfit([observation], truth, known())[0] < 1e-3
    assert misfit([other], truth, known())[0] > 5e-3


def test_an_image_without_a_number_is_the_worst(blobs: Blobs, observe: Observe) -> None:
    victims = blobs(1, 1)
    broken = Reconstruction(torch.full_like(victims.floats(), torch.nan), victims.labels, 0.0)
    assert misfit(each(victims, observe), [broken], known()) == [2.0]


def test_one_image_has_to_explain_all_that_was_observed_of_it(blobs: Blobs, observe: Observe) -> None:
    victims = blobs(2, 1)
    first, other = each(victims, observe)
    guess = [Reconstruction(victims.floats()[:1] * 0.5, victims.labels[:1], 0.0)]
    (own,), (strange,) = misfit([first], guess, known()), misfit([replace(other, labels=first.labels)], guess, known())
    both = replace(first, repeats=(replace(other, labels=first.labels),) * 2)
    assert misfit([both], guess, known()) == pytest.approx([(own + 2 * strange) / 3], rel=1e-6)


def test_entries_that_tell_nothing_do_not_count(blobs: Blobs, observe: Observe) -> None:
    victims = blobs(1, 1)
    (seen,) = each(victims, observe)
    truth = [Reconstruction(victims.floats(), victims.labels, 0.0)]
    kept = {name: (torch.arange(t.numel()) % 3 == 0).view(t.shape).float() for name, t in seen.update.tensors.items()}
    pruned = replace(
        seen, update=replace(seen.update, tensors={n: t * kept[n] for n, t in seen.update.tensors.items()})
    )
    assert misfit([pruned], truth, known())[0] > 0.05
    assert misfit([pruned], truth, known(), lambda gradient: kept)[0] < 1e-9
