from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from targets import own_target, shared_target
from torch import Tensor

from fedveil.attacks import DeepLeakage, InvertingGradients, Knowledge, Observation, Strongest
from fedveil.attacks.matching.attack import GradientMatching
from fedveil.attacks.matching.match import Match
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import Reconstruction, ThreatModel
from fedveil.fl.models import ModelSpec

SPEC = ModelSpec("lenet", (1, 16, 16), 2, width=8)

Blobs = Callable[..., Images]
Observe = Callable[..., Observation]


def known(spec: ModelSpec = SPEC, *, labels: bool = True, own: bool = False) -> Knowledge:
    target = (own_target if own else shared_target)(spec)
    return Knowledge(ThreatModel(labels=labels), target, torch.device("cpu"), 3)


def each(images: Images, observe: Observe, spec: ModelSpec = SPEC, **options: object) -> list[Observation]:
    return [observe(images.take(torch.tensor([i])), spec, number=i, client=i, **options) for i in range(len(images))]


def errors(found: list[Reconstruction], images: Images) -> Tensor:
    return torch.stack([(f.images[0] - x).square().mean() for f, x in zip(found, images.floats(), strict=True)])


class Script:
    """Stands in for all searches: what each makes of each victim, how long it was let run, and whether from where it was."""

    def __init__(self, images: dict[str, list[Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, int, list[int], bool]] = []

        def invert(
            attack: GradientMatching,
            observations: list[Observation],
            knowledge: Knowledge,
            visible: object = None,
            *,
            warm: list[Reconstruction] | None = None,
        ) -> list[Reconstruction]:
            self.calls.append((attack.name, attack.steps, [o.number for o in observations], warm is not None))
            # Own losses mean something else in each attack: they must not decide.
            return [
                Reconstruction(images[attack.name][o.number], o.labels, -1.0 if attack.name == "deep_leakage" else 9.0)
                for o in observations
            ]

        monkeypatch.setattr(GradientMatching, "invert", invert)


PAIR = ("gradinversion", "deep_leakage")

# The choice


def test_each_victim_goes_on_with_what_is_ahead_by_the_yardstick(
    blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    victims = blobs(3, 1)
    x, grey = victims.floats()[:, None], torch.full((3, 1, 1, 16, 16), 0.5)
    script = Script({"gradinversion": [x[0], grey[1], x[2]], "deep_leakage": [grey[0], x[1], grey[2]]}, monkeypatch)
    found = Strongest(steps=80, contenders=PAIR)(each(victims, observe), known())
    assert float(errors(found, victims).max()) == 0.0
    # A sixteenth for each one's heat, the rest for the winner.
    assert script.calls == [
        ("gradinversion", 5, [0, 1, 2], False),
        ("deep_leakage", 5, [0, 1, 2], False),
        ("gradinversion", 70, [0, 2], True),
        ("deep_leakage", 70, [1], True),
    ]
    assert max(one.loss for one in found) < 1e-9


def test_the_heats_of_many_leave_half_of_the_budget(
    blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    victims = blobs(1, 1)
    x, three = victims.floats(), ("gradinversion", "dlg", "deep_leakage")
    script = Script({name: [(0.8 if name == "dlg" else 0.05) * x] for name in three}, monkeypatch)
    (found,) = Strongest(steps=160, contenders=three)(each(victims, observe), known())
    assert script.calls == [*((name, 10, [0], False) for name in three), ("dlg", 130, [0], True)]
    assert torch.equal(found.images, 0.8 * x)
    monkeypatch.setattr("fedveil.attacks.strongest.HEATS", 0.125)
    script.calls.clear()
    Strongest(steps=160, contenders=three)(each(victims, observe), known())
    assert [steps for _, steps, _, _ in script.calls] == [6, 6, 6, 142]


def test_a_heat_that_fits_better_than_the_long_run_is_kept(
    blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    victims = blobs(1, 1)
    truth, grey = victims.floats(), torch.full((1, 1, 16, 16), 0.5)
    heats = iter([grey, truth, grey])

    def invert(
        attack: GradientMatching, observations: list[Observation], *_: object, **__: object
    ) -> list[Reconstruction]:
        return [Reconstruction(next(heats), o.labels, 0.0) for o in observations]

    monkeypatch.setattr(GradientMatching, "invert", invert)
    (found,) = Strongest(contenders=PAIR)(each(victims, observe), known())
    assert torch.equal(found.images, truth)


def test_what_is_solved_beside_the_searches_counts_as_well(blobs: Blobs, observe: Observe) -> None:
    victims, spec = blobs(2, 1), ModelSpec("mlp", (1, 16, 16), 2)
    found = Strongest(steps=20, contenders=("analytic", "deep_leakage"))(each(victims, observe, spec), known(spec))
    assert float(errors(found, victims).max()) < 1e-8


def test_contenders_that_need_more_than_is_granted_stand_back(blobs: Blobs, observe: Observe) -> None:
    observations = each(blobs(1, 1), observe)
    found = Strongest(steps=20, contenders=("latent_search", "deep_leakage"))(observations, known(own=True))
    alone = Strongest(steps=20, contenders=("deep_leakage",))(observations, known(own=True))
    assert torch.equal(found[0].images, alone[0].images)
    with pytest.raises(FedveilError, match="what the attacker holds fits none of latent_search"):
        Strongest(contenders=("latent_search",))(observations, known())


@pytest.mark.parametrize("steps", [1, 3])
def test_the_budget_counts_every_evaluation(
    steps: int, blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = 0
    real = Match.objective

    def counting(match: Match, **options: object) -> object:
        step = real(match, **options)  # type: ignore[arg-type]

        def counted_step(x: Tensor) -> object:
            nonlocal counted
            counted += 1
            return step(x)

        return counted_step

    monkeypatch.setattr(Match, "objective", counting)
    observations = each(blobs(1, 1), observe, steps=steps)
    Strongest(steps=160)(observations, known())
    # Each optimiser also scores its start, and stops when it has converged; the search for a place has many short runs.
    assert 120 <= counted <= 160 + (5 if steps == 1 else 40)


@pytest.mark.parametrize(("model", "alone"), [("lenet", "deep_leakage"), ("convnet", "modern")])
def test_searches_that_do_not_suit_the_network_stand_back(
    model: str, alone: str, blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    victims, spec = blobs(1, 1), ModelSpec(model, (1, 16, 16), 2, width=8)
    found = {name: [victims.floats()] for name in ("modern", "deep_leakage")}
    script = Script(found, monkeypatch)
    Strongest(steps=80)(each(victims, observe, spec), known(spec))
    assert script.calls == [(alone, 80, [0], False)]


def test_in_networks_of_relus_two_compete_for_a_batch(
    blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    victims, spec = blobs(2, 1), ModelSpec("convnet", (1, 16, 16), 2, width=8)
    x, grey = victims.floats(), torch.full((2, 1, 16, 16), 0.5)
    script = Script({"modern": [grey], "inverting_gradients": [x]}, monkeypatch)
    Strongest(steps=80)([observe(victims, spec)], known(spec))
    assert script.calls == [
        ("modern", 5, [0], False),
        ("inverting_gradients", 5, [0], False),
        ("inverting_gradients", 70, [0], True),
    ]


# It attacks


def test_it_is_about_as_good_as_the_better_of_both(blobs: Blobs, observe: Observe) -> None:
    victims = blobs(3, 1)
    observations = each(victims, observe)
    found = errors(Strongest(steps=200)(observations, known()), victims)
    alone = [
        errors(attack(observations, known()), victims)
        for attack in (InvertingGradients(steps=200), DeepLeakage(steps=200))
    ]
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
    whole = Strongest(steps=20)(observations, known(labels=False))
    pieces = Strongest(steps=20, chunk=2)(observations, known(labels=False))
    assert [one.labels.tolist() for one in whole] == [[0], [1], [0]]
    for one, two in zip(whole, pieces, strict=True):
        torch.testing.assert_close(one.images, two.images, atol=5e-3, rtol=0)


PRESETS = ("denoised", "dlg", "gradinversion", "idlg", "latent_search", "modern", "surrogate_model")
FITTING = ", ".join(sorted({*PRESETS, "analytic", "deep_leakage", "inverting_gradients"}))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 19}, "strongest: steps is 19; it has to be at least 20 and finite"),
        ({"steps": 40.5}, "strongest: steps is 40.5; it has to be a whole number, not float"),
        ({"chunk": 2.0}, "strongest: chunk is 2.0; it has to be a whole number, not float"),
        ({"chunk": 0}, "strongest: chunk is 0; it has to be at least 1 and finite"),
        ({"contenders": "modern"}, "strongest: contenders is 'modern'; it has to be a list of names"),
        ({"contenders": ()}, "strongest: contenders is empty; name at least one attack"),
        ({"contenders": ("adaptive",)}, f"strongest: contenders names 'adaptive'; allowed: {FITTING}"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(FedveilError) as refusal:
        Strongest(**settings)
    assert str(refusal.value) == sentence
