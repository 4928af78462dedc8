from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fedveil.attacks import DeepLeakage, InvertingGradients, Knowledge, Observation, Strongest
from fedveil.attacks.gradient_matching import GradientMatching
from fedveil.attacks.target import target_model
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import Reconstruction, ThreatModel
from fedveil.fl.models import ModelSpec, build_model

SPEC = ModelSpec("lenet", (1, 16, 16), 2, width=8)

Blobs = Callable[..., Images]
Observe = Callable[..., Observation]


def known(spec: ModelSpec = SPEC, *, labels: bool = True) -> Knowledge:
    target = target_model(build_model(spec), image_shape=spec.image_shape, classes=spec.classes)
    return Knowledge(ThreatModel(labels=labels), target, torch.device("cpu"), 3)


def each(images: Images, observe: Observe, spec: ModelSpec = SPEC, **options: object) -> list[Observation]:
    return [observe(images.take(torch.tensor([i])), spec, number=i, client=i, **options) for i in range(len(images))]


def errors(found: list[Reconstruction], images: Images) -> Tensor:
    return torch.stack([(f.images[0] - x).square().mean() for f, x in zip(found, images.floats(), strict=True)])


class Script:
    """Stands in for both attacks: what each makes of each victim, and how long it was let run."""

    def __init__(self, images: dict[str, list[Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, int, list[int]]] = []

        def invert(
            attack: GradientMatching, observations: list[Observation], knowledge: Knowledge
        ) -> list[Reconstruction]:
            self.calls.append((attack.name, attack.steps, [o.number for o in observations]))
            # Own losses mean something else in each attack: they must not decide.
            return [
                Reconstruction(images[attack.name][o.number], o.labels, -1.0 if attack.name == "deep_leakage" else 9.0)
                for o in observations
            ]

        monkeypatch.setattr(GradientMatching, "invert", invert)


# The choice


def test_each_victim_goes_on_with_what_is_ahead_by_the_yardstick(
    blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    victims = blobs(3, 1)
    x, grey = victims.floats()[:, None], torch.full((3, 1, 1, 16, 16), 0.5)
    script = Script(
        {"inverting_gradients": [x[0], grey[1], x[2]], "deep_leakage": [grey[0], x[1], grey[2]]}, monkeypatch
    )
    found = Strongest(steps=80)(each(victims, observe), known())
    assert float(errors(found, victims).max()) == 0.0
    assert script.calls == [
        ("inverting_gradients", 10, [0, 1, 2]),
        ("deep_leakage", 10, [0, 1, 2]),
        ("inverting_gradients", 60, [0, 2]),
        ("deep_leakage", 60, [1]),
    ]
    assert max(one.loss for one in found) < 1e-9


def test_a_heat_that_fits_better_than_the_long_run_is_kept(
    blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    victims = blobs(1, 1)
    truth, grey = victims.floats(), torch.full((1, 1, 16, 16), 0.5)
    heats = iter([grey, truth, grey])

    def invert(attack: GradientMatching, observations: list[Observation], knowledge: Knowledge) -> list[Reconstruction]:
        return [Reconstruction(next(heats), o.labels, 0.0) for o in observations]

    monkeypatch.setattr(GradientMatching, "invert", invert)
    (found,) = Strongest()(each(victims, observe), known())
    assert torch.equal(found.images, truth)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_budget_counts_every_evaluation(
    steps: int, blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = 0
    for name in ("fedveil.attacks.inverting_gradients", "fedveil.attacks.deep_leakage"):
        module = __import__(name, fromlist=["objective"])
        real = module.objective

        def counting(*arguments: object, real: Callable[..., object] = real, **options: object) -> object:
            step = real(*arguments, **options)

            def counted_step(x: Tensor) -> object:
                nonlocal counted
                counted += 1
                return step(x)  # type: ignore[operator]

            return counted_step

        monkeypatch.setattr(module, "objective", counting)
    observations = each(blobs(1, 1), observe, steps=steps)
    Strongest(steps=160)(observations, known())
    # Each optimiser also scores its start: one in Inverting Gradients, two in Deep Leakage, six times that with a search.
    assert 150 <= counted <= 160 + 5 * (1 if steps == 1 else 6)


# It attacks


def test_it_is_about_as_good_as_the_better_of_both(blobs: Blobs, observe: Observe) -> None:
    victims = blobs(3, 1)
    observations = each(victims, observe)
    found = errors(Strongest(steps=200)(observations, known()), victims)
    alone = [errors(attack(observations, known()), victims) for attack in (InvertingGradients(), DeepLeakage())]
    assert bool((found < 2 * torch.stack(alone).min(0).values + 1e-5).all())


def test_several_local_steps_are_inverted(blobs: Blobs, observe: Observe) -> None:
    victims = blobs(2, 1)
    found = Strongest(steps=400)(each(victims, observe, steps=5, learning_rate=0.1), known())
    assert float(errors(found, victims).max()) < 3e-3
    assert max(one.loss for one in found) < 1e-2


def test_a_loss_that_stays_large_flags_an_update_that_no_image_explains(blobs: Blobs, observe: Observe) -> None:
    (observation,) = each(blobs(1, 1), observe)
    noise = {
        n: torch.randn(t.shape, generator=torch.Generator().manual_seed(1))
        for n, t in observation.update.tensors.items()
    }
    noisy = replace(observation, update=replace(observation.update, tensors=noise))
    (good,), (bad,) = (Strongest(steps=80)([o], known()) for o in (observation, noisy))
    assert good.loss < 1e-3 < 0.5 < bad.loss


def test_labels_that_are_not_granted_are_recovered_and_chunks_change_nothing(blobs: Blobs, observe: Observe) -> None:
    victims = blobs(3, 1)
    observations = each(victims, observe, labels=False)
    whole = Strongest(steps=40)(observations, known(labels=False))
    pieces = Strongest(steps=40, chunk=2)(observations, known(labels=False))
    assert [one.labels.tolist() for one in whole] == [[0], [1], [0]]
    for one, two in zip(whole, pieces, strict=True):
        torch.testing.assert_close(one.images, two.images, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 19}, "strongest: steps is 19; it has to be at least 20 and finite"),
        ({"chunk": 0}, "strongest: chunk is 0; it has to be at least 1 and finite"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, int], sentence: str) -> None:
    with pytest.raises(FedveilError) as refusal:
        Strongest(**settings)
    assert str(refusal.value) == sentence
