from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from targets import own_target, shared_target
from torch import Tensor

from fedveil.attacks import IDLG, DeepLeakage, InvertingGradients, Knowledge, Observation
from fedveil.attacks.engine.distances import squared_distance
from fedveil.attacks.engine.objective import Problem, oracle
from fedveil.attacks.matching.attack import Place
from fedveil.attacks.optimizers import LBFGS, Objective
from fedveil.attacks.priors import TotalVariation
from fedveil.attacks.scoring.matching import in_order
from fedveil.fl.data import load_data
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import ThreatModel
from fedveil.fl.models import ModelSpec
from fedveil.fl.optimizers import Adam
from fedveil.fl.seeding import torch_stream

SPEC = ModelSpec("lenet", (1, 16, 16), 2, width=8)

Blobs = Callable[..., Images]
Observe = Callable[..., Observation]


def known(spec: ModelSpec = SPEC, *, labels: bool = True, own: bool = False) -> Knowledge:
    target = (own_target if own else shared_target)(spec)
    return Knowledge(ThreatModel(labels=labels), target, torch.device("cpu"), 3)


def each(images: Images, observe: Observe, **options: object) -> list[Observation]:
    return [observe(images.take(torch.tensor([i])), SPEC, number=i, client=i, **options) for i in range(len(images))]


def test_lenet_tells_nearly_everything(blobs: Blobs, observe: Observe) -> None:
    victims = blobs(3, 1)
    observations = each(victims, observe)
    found = DeepLeakage(steps=100)(observations, known())
    errors = torch.stack([(f.images[0] - x).square().mean() for f, x in zip(found, victims.floats(), strict=True)])
    other = InvertingGradients(steps=100)(observations, known())
    others = torch.stack([(f.images[0] - x).square().mean() for f, x in zip(other, victims.floats(), strict=True)])
    assert float(errors.max()) < 3e-4
    assert bool((errors < others / 3).all())
    assert all(float(f.images.min()) >= 0 and float(f.images.max()) <= 1 for f in found)


@pytest.mark.parametrize(("steps", "ratio"), [(1, 1.2), pytest.param(5, 5, marks=pytest.mark.long)])
def test_a_batch_is_found_among_natural_images(steps: int, ratio: float, observe: Observe) -> None:
    """Many images explain its update; without the spectrum's prior the one that is found is mostly noise."""
    images = load_data("mni152").train
    victims, spec = images.take(torch.arange(0, len(images), len(images) // 2)[:2]), ModelSpec("lenet", images.shape, 3)
    observation, knowledge = observe(victims, spec, steps=steps, learning_rate=0.1), known(spec)
    natural, noisy = (
        in_order(attack([observation], knowledge)[0], victims.floats(), attack=attack.name).images
        for attack in (DeepLeakage(steps=200), IDLG(steps=200))
    )
    natural_error, noisy_error = (float((one - victims.floats()).square().mean()) for one in (natural, noisy))
    assert natural_error < noisy_error / ratio


def test_the_loss_is_the_squared_distance_of_the_returned_images(blobs: Blobs, observe: Observe) -> None:
    observation = observe(blobs(1, 6), SPEC)
    (found,) = DeepLeakage(steps=12, tv=1e-3)([observation], known())
    target = {n: t[None] for n, t in observation.update.tensors.items()}
    problem = Problem(known().model, dict(observation.weights), target, found.labels[None])
    # The last steps smooth a hundredth as much.
    value, _ = oracle(problem, priors=[TotalVariation(1e-5)], distance=squared_distance)(found.images[None])
    assert found.loss == pytest.approx(float(value), rel=1e-4)


def test_labels_that_are_not_granted_are_idlgs(blobs: Blobs, observe: Observe) -> None:
    victims = blobs(2, 7)
    told = DeepLeakage(steps=3)(each(victims, observe), known(own=True))
    untold = DeepLeakage(steps=3)(each(victims, observe, labels=False), known(labels=False, own=True))
    for one, two in zip(told, untold, strict=True):
        assert one.labels.tolist() == two.labels.tolist()
        assert torch.equal(one.images, two.images)


def test_hidden_entries_are_left_out_of_the_match(blobs: Blobs, observe: Observe) -> None:
    victims = blobs(1, 1)
    (whole,) = each(victims, observe)
    kept = {n: (t.abs() >= t.abs().quantile(0.5)).float() for n, t in whole.update.tensors.items()}
    sparse = {n: t * kept[n] for n, t in whole.update.tensors.items()}
    observation = replace(whole, update=replace(whole.update, tensors=sparse))
    attack = DeepLeakage(steps=80)
    (seeing,), (believing,) = (attack.invert([observation], known(), masks) for masks in (lambda _: kept, None))
    x = victims.floats()
    assert float((seeing.images - x).square().mean()) < 0.1 * float((believing.images - x).square().mean())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 0}, "deep_leakage: steps is 0; it has to be at least 1 and finite"),
        ({"history": 0}, "deep_leakage: history is 0; it has to be at least 1 and finite"),
        ({"tv": -1.0}, "deep_leakage: tv is -1.0; it has to be at least 0 and finite"),
        ({"steps": 40.5}, "deep_leakage: steps is 40.5; it has to be a whole number, not float"),
        ({"history": True}, "deep_leakage: history is True; it has to be a whole number, not bool"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], sentence: str) -> None:
    with pytest.raises(FedveilError) as refusal:
        DeepLeakage(**settings)  # type: ignore[arg-type]
    assert str(refusal.value) == sentence


@pytest.mark.parametrize(("steps", "local_steps"), [(1, 1), (2, 1), (9, 1), (80, 1), (1, 3), (19, 3), (20, 3), (45, 3)])
def test_all_steps_are_taken_and_no_more(
    steps: int, local_steps: int, blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of L-BFGS takes one evaluation more: that of its start. (That it takes its steps, its own tests say.)"""
    taken: list[int] = []

    def counting(lbfgs: LBFGS, step: Objective, start: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        taken.append(lbfgs.steps)
        return start, step(start)[0]

    monkeypatch.setattr(LBFGS, "minimise", counting)
    DeepLeakage(steps=steps)(each(blobs(1, 1), observe, steps=local_steps), known())
    assert min(taken) >= 1
    # Five short runs of equal length may leave a few of their share.
    assert steps - 4 * (local_steps > 1 and steps >= 20) <= sum(taken) <= steps


def test_a_wrong_learning_rate_falls_back_on_the_direction(blobs: Blobs, observe: Observe) -> None:
    victims = blobs(1, 1)
    (observation,) = each(victims, observe, steps=5, learning_rate=0.2)
    doubled = replace(observation, update=replace(observation.update, learning_rate=0.4))
    (found,) = DeepLeakage(steps=100)([doubled], known())
    assert float((found.images - victims.floats()).square().mean()) < 3e-3


def test_unrolled_steps_tell_more_than_one_gradient_that_stands_for_them(blobs: Blobs, observe: Observe) -> None:
    victims = blobs(1, 1)
    observations = each(victims, observe, steps=4, learning_rate=0.5)
    own = {}
    places: tuple[Place, ...] = ("searched", "unrolled")
    for place in places:
        found = DeepLeakage(steps=100, place=place)(observations, known())
        own[place] = [float((f.images[0] - x).square().mean()) for f, x in zip(found, victims.floats(), strict=True)]
    assert max(own["unrolled"]) < 1e-4
    assert all(5 * unrolled < searched for unrolled, searched in zip(own["unrolled"], own["searched"], strict=True))


def test_several_observations_are_matched_by_one_image(blobs: Blobs, observe: Observe) -> None:
    victims = blobs(1, 1)

    def noisy(number: int) -> Observation:
        (whole,) = each(victims, observe)
        stream = torch_stream(number, "noise")
        tensors = {
            n: t + 0.3 * t.square().mean().sqrt() * torch.randn(t.shape, generator=stream)
            for n, t in whole.update.tensors.items()
        }
        return replace(whole, update=replace(whole.update, tensors=tensors))

    first, *others = (noisy(number) for number in range(6))
    attack = DeepLeakage(steps=60, tv=1e-2)
    x = victims.floats()
    (once,), (often,) = (attack([replace(first, repeats=own)], known()) for own in ((), tuple(others)))
    assert float((often.images - x).square().mean()) < 0.5 * float((once.images - x).square().mean())


def test_batches_that_were_seen_unequally_often_are_refused(blobs: Blobs, observe: Observe) -> None:
    one, two = each(blobs(2, 1), observe)
    with pytest.raises(FedveilError, match="equally often"):
        DeepLeakage(steps=1)([one, replace(two, repeats=(two,))], known())


def test_steps_that_are_no_plain_sgd_are_matched_by_one_gradient(blobs: Blobs, observe: Observe) -> None:
    observations = each(blobs(1, 1), observe, steps=3, optimizer=Adam(), learning_rate=0.001)
    found = [DeepLeakage(steps=40, place=place)(observations, known(own=True))[0] for place in ("searched", "unrolled")]
    assert torch.equal(found[0].images, found[1].images)
    assert found[0].loss == found[1].loss
