from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fedveil.attacks.engine import Problem, objective, oracle
from fedveil.attacks.matching import Distance, absolute_distance, squared_distance, weighted
from fedveil.attacks.priors import TotalVariation
from fedveil.attacks.target import target_model
from fedveil.fl.models import ModelSpec, build_model
from fedveil.fl.seeding import torch_stream

VICTIMS = 2
MODELS = {
    "lenet": ModelSpec("lenet", (1, 12, 12), 3, width=4),
    "convnet-group": ModelSpec("convnet", (3, 12, 12), 3, norm="group", width=4),
    "convnet-batch": ModelSpec("convnet", (1, 16, 16), 3, norm="batch", width=4),
    "convnet-none": ModelSpec("convnet", (1, 12, 12), 3, norm="none", width=4),
    "resnet20-group": ModelSpec("resnet20", (1, 12, 12), 3, norm="group", width=4),
    "resnet20-batch": ModelSpec("resnet20", (1, 12, 12), 3, norm="batch", width=4),
}


def problem_of(spec: ModelSpec, *, batch: int, own_weights: bool, masked: bool) -> tuple[Problem, Tensor]:
    """Random weights, target, labels and masks in float64, and a point at which to compare."""
    stream = torch_stream(0, "problem")

    def normal(shape: torch.Size | tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=stream, dtype=torch.float64)

    model = target_model(build_model(spec), image_shape=spec.image_shape, classes=spec.classes)
    model.module.double()
    weights = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    if own_weights:
        weights = {name: w + 0.05 * normal((VICTIMS, *w.shape)) for name, w in weights.items()}
    shapes = {name: (VICTIMS, *p.shape) for name, p in model.module.named_parameters()}
    masks = {name: (normal(shape) > -0.5).double() for name, shape in shapes.items()} if masked else None
    problem = Problem(
        model=model,
        weights=weights,
        target={name: normal(shape) for name, shape in shapes.items()},
        labels=torch.randint(spec.classes, (VICTIMS, batch), generator=stream),
        own_weights=own_weights,
        visible=masks,
    )
    return problem, torch.rand((VICTIMS, batch, *spec.image_shape), generator=stream, dtype=torch.float64)


@pytest.mark.parametrize("distance", [squared_distance, absolute_distance], ids=["squared", "absolute"])
def test_every_distance_steps_as_its_oracle(distance: Distance) -> None:
    by_layer = weighted(distance, {"head.weight": 0.25, "body.0.0.weight": 4.0})
    for own_weights, masked in ((False, True), (True, False)):
        problem, x = problem_of(MODELS["convnet-group"], batch=3, own_weights=own_weights, masked=masked)
        assert {"head.weight", "body.0.0.weight"} <= {*problem.target}
        for chosen in (distance, by_layer):
            value, slope = objective(problem, priors=[TotalVariation(0.01)], distance=chosen)(x)
            expected, expected_slope = oracle(problem, priors=[TotalVariation(0.01)], distance=chosen)(x)
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
            error = (slope - expected_slope).flatten(1).norm(dim=1) / expected_slope.flatten(1).norm(dim=1)
            assert float(error.max()) < 1e-6


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("own_weights", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS.keys())
def test_one_step_equals_the_twice_differentiated_oracle(
    spec: ModelSpec, own_weights: bool, masked: bool, batch: int
) -> None:
    problem, x = problem_of(spec, batch=batch, own_weights=own_weights, masked=masked)
    value, slope = objective(problem, priors=[TotalVariation(0.01)])(x)
    expected, expected_slope = oracle(problem, priors=[TotalVariation(0.01)])(x)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    error = (slope - expected_slope).flatten(1).norm(dim=1) / expected_slope.flatten(1).norm(dim=1)
    assert float(error.max()) < 1e-5


def test_the_step_agrees_with_finite_differences() -> None:
    problem, x = problem_of(MODELS["lenet"], batch=1, own_weights=False, masked=False)
    step = objective(problem)
    direction = torch.randn(x.shape, generator=torch_stream(1, "direction"), dtype=torch.float64)
    change = (step(x + 1e-5 * direction)[0] - step(x - 1e-5 * direction)[0]) / 2e-5
    torch.testing.assert_close((step(x)[1] * direction).flatten(1).sum(1), change, rtol=1e-5, atol=1e-9)


def test_victims_do_not_see_each_other() -> None:
    problem, x = problem_of(MODELS["convnet-group"], batch=3, own_weights=True, masked=True)
    together = objective(problem, priors=[TotalVariation(0.01)])(x)
    assert problem.visible is not None
    for index in range(VICTIMS):
        one = slice(index, index + 1)
        alone = Problem(
            model=problem.model,
            weights={n: w[one] for n, w in problem.weights.items()},
            target={n: t[one] for n, t in problem.target.items()},
            labels=problem.labels[one],
            own_weights=True,
            visible={n: m[one] for n, m in problem.visible.items()},
        )
        value, slope = objective(alone, priors=[TotalVariation(0.01)])(x[one])
        torch.testing.assert_close(value, together[0][one])
        torch.testing.assert_close(slope, together[1][one])


def test_hidden_entries_of_the_target_do_not_matter() -> None:
    problem, x = problem_of(MODELS["lenet"], batch=1, own_weights=False, masked=True)
    assert problem.visible is not None
    masks = problem.visible
    garbled = {n: t + 100 * (1 - masks[n]) for n, t in problem.target.items()}
    other = Problem(problem.model, problem.weights, garbled, problem.labels, visible=masks)
    for one, two in zip(objective(problem)(x), objective(other)(x), strict=True):
        assert torch.equal(one, two)


def test_total_variation_enters_with_its_weight() -> None:
    problem, x = problem_of(MODELS["lenet"], batch=3, own_weights=False, masked=False)
    plain, plain_slope = objective(problem)(x)
    weighed, weighed_slope = objective(problem, priors=[TotalVariation(0.5)])(x)
    leaf = x.clone().requires_grad_(True)
    variations = TotalVariation(0.5)(leaf)
    torch.testing.assert_close(weighed - plain, variations.detach())
    torch.testing.assert_close(weighed_slope - plain_slope, torch.autograd.grad(variations.sum(), leaf)[0])


def test_frozen_parameters_are_not_matched_but_still_shape_the_gradient() -> None:
    problem, x = problem_of(MODELS["convnet-group"], batch=3, own_weights=True, masked=False)
    kept = [name for name in problem.target if not name.startswith("body.0")]
    partial = replace(problem, target={name: problem.target[name] for name in kept})
    assert {*partial.trained} == {*kept}
    assert partial.frozen
    value, slope = objective(partial, priors=[TotalVariation(0.01)])(x)
    expected, expected_slope = oracle(partial, priors=[TotalVariation(0.01)])(x)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(slope, expected_slope, rtol=1e-7, atol=1e-12)
    moved = replace(partial, weights={n: w if n in kept else w + 0.1 for n, w in partial.weights.items()})
    assert not torch.allclose(objective(moved, priors=[TotalVariation(0.01)])(x)[0], value)


def test_taken_victims_step_as_they_did_among_all() -> None:
    for own_weights in (False, True):
        problem, x = problem_of(MODELS["convnet-group"], batch=3, own_weights=own_weights, masked=True)
        matching = objective(problem, priors=[TotalVariation(0.1)])
        at = torch.tensor([1])
        for whole, part in zip(matching(x), matching.take(at)(x[at]), strict=True):
            torch.testing.assert_close(part, whole[at])


def test_a_soft_label_of_one_class_is_that_class() -> None:
    problem, x = problem_of(MODELS["lenet"], batch=3, own_weights=False, masked=False)
    soft = replace(problem, labels=torch.nn.functional.one_hot(problem.labels, 3).double())
    for hard, mixed in zip(objective(problem)(x), objective(soft)(x), strict=True):
        torch.testing.assert_close(mixed, hard)
    blurred = replace(soft, labels=soft.labels / 2 + 1 / 6)
    for mine, slow in zip(objective(blurred)(x), oracle(blurred)(x), strict=True):
        torch.testing.assert_close(mine, slow)
