"""A changed loss that the attacker knows: what it matches is the gradient of that loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fedveil.attacks import Adaptive, InvertingGradients, Knowledge, Observation
from fedveil.attacks.base import AttackerPreparation
from fedveil.attacks.engine.distances import squared_distance
from fedveil.attacks.engine.objective import Problem, objective, oracle
from fedveil.attacks.engine.unrolled import Path, replayed, slopes
from fedveil.attacks.matching.attack import problem_of
from fedveil.attacks.target.model import TargetModel
from fedveil.defense import BiDO
from fedveil.defense.base import LossHook, Stateless
from fedveil.fl.data.images import Images
from fedveil.fl.messages import ThreatModel
from fedveil.fl.models import ModelSpec

Blobs = Callable[..., Images]
Observe = Callable[..., Observation]
TargetOf = Callable[[ModelSpec], TargetModel]
CPU = torch.device("cpu")
SPECS = {
    "lenet": ModelSpec("lenet", (1, 12, 12), 2, width=4),
    "convnet": ModelSpec("convnet", (1, 12, 12), 2, norm="batch", width=4),
}


def halved(loss: Tensor, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
    return loss / 2 + 0.1 * model(1 - x).square().mean()


def problem(target: TargetModel, one: Observation, defended: LossHook | None) -> tuple[Problem, Knowledge]:
    knowledge = Knowledge(ThreatModel(), replace(target, defended=defended), CPU, seed=0)
    return problem_of([one], knowledge, [0.0]), knowledge


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("defended", [halved, BiDO().loss, BiDO(measure="coco").loss], ids=["own", "hsic", "coco"])
def test_slopes_are_those_of_double_backward(
    name: str, defended: LossHook, observe: Observe, target_of: TargetOf, blobs: Blobs
) -> None:
    images = blobs(3, 0, side=12)
    single, _ = problem(target_of(SPECS[name]), observe(images, SPECS[name]), defended)
    exact = replace(single, model=replace(single.model, module=single.model.module.double())).to(torch.float64)
    x = 0.3 + 0.4 * images.floats().double()[None]
    # More often than a function is traced after: the list of operations has to give the same.
    for _ in range(4):
        value, slope = objective(exact)(x)
    expected, by_images = oracle(exact)(x)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(slope, by_images, rtol=1e-4, atol=1e-7 * float(by_images.abs().max() + 1))
    plain = replace(exact, model=replace(exact.model, defended=None))
    assert not torch.allclose(objective(plain)(x)[0], value)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("measure", ["hsic", "coco"])
def test_the_true_images_explain_the_update_under_the_true_loss_alone(
    name: str, measure: str, observe: Observe, target_of: TargetOf, blobs: Blobs
) -> None:
    images, defense = blobs(4, 0, side=12), BiDO(measure=measure, strength=10)  # type: ignore[arg-type]
    one = observe(images, SPECS[name], hooks=Stateless(defense))
    known, _ = problem(target_of(SPECS[name]), one, defense.loss)
    unknown, _ = problem(target_of(SPECS[name]), one, None)
    x = images.floats()[None]
    left, whole = (float(objective(p)(x)[0]) for p in (known, unknown))
    assert left < 1e-4 < whole


def test_local_steps_are_replayed_under_it(observe: Observe, target_of: TargetOf, blobs: Blobs) -> None:
    images, defense = blobs(4, 0, side=12), BiDO()
    one = observe(images, SPECS["lenet"], hooks=Stateless(defense), steps=3)
    known, _ = problem(target_of(SPECS["lenet"]), one, defense.loss)
    x, rates = images.floats()[None], torch.tensor([0.05])
    found = replayed(known, x, steps=3, rates=rates)
    for key, tensor in known.target.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-5)
    assert float(slopes(known, Path(3, rates), squared_distance, x)[0]) < 1e-4


def test_the_adaptive_attacker_matches_the_loss_that_its_surrogate_names(
    observe: Observe, target_of: TargetOf, blobs: Blobs
) -> None:
    images, spec = blobs(4, 0, side=12), SPECS["lenet"]
    prepared = Stateless(BiDO(strength=3))
    one = observe(images, spec, hooks=prepared)
    inversion = InvertingGradients(steps=60)
    attack = Adaptive(inversion=inversion, calibration=0)
    grants = ThreatModel(auxiliary_data=True, defense_algorithm=True)
    surrogate = prepared.surrogate()
    losses = {}
    for name, own in (("known", surrogate), ("unknown", replace(surrogate, loss=None))):
        knowledge = Knowledge(
            grants, target_of(spec), CPU, 0, blobs(12, 5, side=12), {None: AttackerPreparation(own, None)}
        )
        losses[name] = attack([one], knowledge)[0].loss
    assert losses["known"] < losses["unknown"]
