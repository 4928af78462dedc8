"""Every preset really reconstructs, on whatever it is given: grey or colour images, batches, several steps, no labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from targets import own_target, shared_target

from fedveil.attacks import Attack, InvertingGradients, Knowledge, Observation
from fedveil.attacks.matching.attack import _Run
from fedveil.attacks.presets import DLG, IDLG, Denoised, GradInversion, LatentSearch, Modern, SurrogateModel
from fedveil.attacks.scoring import ClassMeanGuess, match
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import Reconstruction, ThreatModel
from fedveil.fl.models import ModelSpec

SPEC = ModelSpec("lenet", (1, 16, 16), 2, width=8)

Blobs = Callable[..., Images]
Observe = Callable[..., Observation]

# Mean squared error that each has to stay below, with these settings, where a guess makes 0.02.
PRESETS: dict[Attack, float] = {
    DLG(steps=150): 1e-3,
    IDLG(steps=120): 1e-3,
    InvertingGradients(steps=80, tv=1e-3, learning_rate=0.1): 2e-3,
    Modern(steps=80, tv=1e-3): 2e-3,
    GradInversion(steps=80, restarts=2): 2e-3,
    LatentSearch(steps=60, decoder_steps=100): 2e-3,
    SurrogateModel(steps=80, learning_rate=0.1): 2e-3,
    Denoised(steps=80, learning_rate=0.1, denoiser_steps=60): 2e-3,
}
each_preset = pytest.mark.parametrize("attack", PRESETS, ids=lambda attack: attack.name)


def known(attack: Attack, auxiliary: Images, spec: ModelSpec = SPEC, *, labels: bool = True) -> Knowledge:
    target = shared_target(spec)
    granted = attack.needs.auxiliary_data
    threat = ThreatModel(labels=labels, auxiliary_data=granted)
    return Knowledge(threat, target, torch.device("cpu"), 3, auxiliary if granted else None)


def error(found: Reconstruction, images: Images) -> float:
    x = images.floats()
    return float((found.images[match(found.images, x)] - x).square().mean())


@each_preset
def test_it_reconstructs(attack: Attack, blobs: Blobs, observe: Observe) -> None:
    auxiliary, victim = blobs(64, 2), blobs(1, 1)
    guess = ClassMeanGuess.of(auxiliary, classes=2).guess(victim.labels)
    baseline = float((guess - victim.floats()).square().mean())
    (found,) = attack([observe(victim, SPEC)], known(attack, auxiliary))
    assert error(found, victim) < PRESETS[attack] < baseline / 5
    assert found.labels.tolist() == victim.labels.tolist()
    assert 0 <= float(found.images.min()) <= float(found.images.max()) <= 1


@each_preset
@pytest.mark.parametrize("steps", [1, 3])
def test_it_runs_on_colour_batches_without_labels(attack: Attack, steps: int, blobs: Blobs, observe: Observe) -> None:
    spec = ModelSpec("convnet", (3, 12, 12), 2, width=2, norm="batch")
    batch = blobs(3, 5, side=12, channels=3)
    observation = observe(batch, spec, steps=steps, labels=False)
    short = {"steps": 3, **{n: 2 for n in ("decoder_steps", "denoiser_steps") if hasattr(attack, n)}}
    some = type(attack)(**short)  # type: ignore[arg-type]
    (found,) = some([observation], known(some, blobs(16, 2, side=12, channels=3), spec, labels=False))
    assert found.images.shape == (3, 3, 12, 12)
    assert found.labels.shape == (3,)
    assert torch.isfinite(found.images).all()
    assert found.loss < float("inf")


def test_a_surrogate_is_searched_for_and_then_refined_by_the_steps_themselves(blobs: Blobs, observe: Observe) -> None:
    """With as many evaluations it is nearer than the search for a place alone, and than replayed steps alone."""
    victims, steps = blobs(2, 1), 120
    observations = [
        observe(victims.take(torch.tensor([i])), SPEC, number=i, client=i, steps=5, learning_rate=0.3) for i in range(2)
    ]
    attack = SurrogateModel(steps=steps)
    knowledge = known(attack, victims)
    run = _Run(observations, knowledge, None, True)
    ways = {
        "both": attack(observations, knowledge),
        "searched": SurrogateModel(steps=steps // 2, place="searched")(observations, knowledge),
        "replayed": attack._matched(run, [0.0] * len(observations), unrolled=True),
    }
    errors = {
        way: sum(float((one.images[0] - x).square().mean()) for one, x in zip(found, victims.floats(), strict=True))
        for way, found in ways.items()
    }
    assert errors["both"] <= min(errors.values())
    assert errors["both"] < 0.5 * errors["searched"]


def test_images_and_labels_of_a_batch_are_found_together(blobs: Blobs, observe: Observe) -> None:
    batch = blobs(2, 3)
    attack = DLG(steps=150)
    (found,) = attack([observe(batch, SPEC, labels=False)], known(attack, batch, labels=False))
    assert sorted(found.labels.tolist()) == [0, 1]
    x = batch.floats()
    errors = (found.images[match(found.images, x)] - x).square().mean((1, 2, 3))
    # The classifier is so sure of one of them already that it hardly shows in the gradient.
    assert float(errors.min()) < 1e-3


def test_labels_that_are_granted_are_not_looked_at(blobs: Blobs, observe: Observe) -> None:
    batch = blobs(2, 3)
    attack = DLG(steps=8)
    told = attack([observe(batch, SPEC)], replace(known(attack, batch), model=own_target(SPEC)))
    untold = attack(
        [observe(batch, SPEC, labels=False)], replace(known(attack, batch, labels=False), model=own_target(SPEC))
    )
    assert torch.equal(told[0].images, untold[0].images)
    assert torch.equal(told[0].labels, untold[0].labels)


def test_restarts_that_have_to_agree_are_kept_together(blobs: Blobs, observe: Observe) -> None:
    observations = [observe(blobs(1, seed), SPEC, number=seed) for seed in range(2)]
    attack = GradInversion(steps=4, restarts=3)
    together = attack(observations, known(attack, blobs(1, 1)))
    apart = GradInversion(steps=4, restarts=3, chunk=4)(observations, known(attack, blobs(1, 1)))
    for one, two in zip(together, apart, strict=True):
        torch.testing.assert_close(one.images, two.images, atol=1e-4, rtol=0)
    with pytest.raises(FedveilError, match="go together"):
        GradInversion(restarts=3, chunk=2)


def test_statistics_of_the_victims_own_batch_help(blobs: Blobs, observe: Observe) -> None:
    spec = ModelSpec("convnet", (1, 16, 16), 2, width=4, norm="batch")
    victim = blobs(1, 1)
    observation = observe(victim, spec)
    errors = {}
    for weight in (0.0, 1e-2):
        attack = GradInversion(steps=60, restarts=1, statistics=weight)
        (found,) = attack([observation], known(attack, victim, spec))
        errors[weight] = error(found, victim)
    assert errors[1e-2] < 0.7 * errors[0.0]
