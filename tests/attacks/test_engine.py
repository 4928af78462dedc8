from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fedveil.attacks.engine import (
    Problem,
    Schedule,
    Tensors,
    cosine_distance,
    distance_and_slope,
    minimise,
    oracle,
    total_variation,
)
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


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("own_weights", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS.keys())
def test_one_step_equals_the_twice_differentiated_oracle(
    spec: ModelSpec, own_weights: bool, masked: bool, batch: int
) -> None:
    problem, x = problem_of(spec, batch=batch, own_weights=own_weights, masked=masked)
    objective, slope = distance_and_slope(problem, tv=0.01)(x)
    expected, expected_slope = oracle(problem, tv=0.01)(x)
    torch.testing.assert_close(objective, expected, rtol=1e-9, atol=0)
    error = (slope - expected_slope).flatten(1).norm(dim=1) / expected_slope.flatten(1).norm(dim=1)
    assert float(error.max()) < 1e-5


def test_the_step_agrees_with_finite_differences() -> None:
    problem, x = problem_of(MODELS["lenet"], batch=1, own_weights=False, masked=False)
    step = distance_and_slope(problem, tv=0.0)
    direction = torch.randn(x.shape, generator=torch_stream(1, "direction"), dtype=torch.float64)
    change = (step(x + 1e-5 * direction)[0] - step(x - 1e-5 * direction)[0]) / 2e-5
    torch.testing.assert_close((step(x)[1] * direction).flatten(1).sum(1), change, rtol=1e-5, atol=1e-9)


def test_victims_do_not_see_each_other() -> None:
    problem, x = problem_of(MODELS["convnet-group"], batch=3, own_weights=True, masked=True)
    together = distance_and_slope(problem, tv=0.01)(x)
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
        objective, slope = distance_and_slope(alone, tv=0.01)(x[one])
        torch.testing.assert_close(objective, together[0][one])
        torch.testing.assert_close(slope, together[1][one])


def test_hidden_entries_of_the_target_do_not_matter() -> None:
    problem, x = problem_of(MODELS["lenet"], batch=1, own_weights=False, masked=True)
    assert problem.visible is not None
    masks = problem.visible
    garbled = {n: t + 100 * (1 - masks[n]) for n, t in problem.target.items()}
    other = Problem(problem.model, problem.weights, garbled, problem.labels, visible=masks)
    for one, two in zip(distance_and_slope(problem, tv=0)(x), distance_and_slope(other, tv=0)(x), strict=True):
        assert torch.equal(one, two)


def test_total_variation_enters_with_its_weight() -> None:
    problem, x = problem_of(MODELS["lenet"], batch=3, own_weights=False, masked=False)
    plain, plain_slope = distance_and_slope(problem, tv=0.0)(x)
    weighed, weighed_slope = distance_and_slope(problem, tv=0.5)(x)
    leaf = x.clone().requires_grad_(True)
    variations = torch.stack([total_variation(one) for one in leaf])
    torch.testing.assert_close(weighed - plain, 0.5 * variations.detach())
    torch.testing.assert_close(weighed_slope - plain_slope, 0.5 * torch.autograd.grad(variations.sum(), leaf)[0])


def test_frozen_parameters_are_not_matched_but_still_shape_the_gradient() -> None:
    problem, x = problem_of(MODELS["convnet-group"], batch=3, own_weights=True, masked=False)
    kept = [name for name in problem.target if not name.startswith("body.0")]
    partial = replace(problem, target={name: problem.target[name] for name in kept})
    assert {*partial.trained} == {*kept}
    assert partial.frozen
    objective, slope = distance_and_slope(partial, tv=0.01)(x)
    expected, expected_slope = oracle(partial, tv=0.01)(x)
    torch.testing.assert_close(objective, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(slope, expected_slope, rtol=1e-7, atol=1e-12)
    moved = replace(partial, weights={n: w if n in kept else w + 0.1 for n, w in partial.weights.items()})
    assert not torch.allclose(distance_and_slope(moved, tv=0.01)(x)[0], objective)


# Cosine distance and total variation


def test_cosine_distance_by_hand() -> None:
    # g = (3, 4), T = (4, 3), each over two tensors: cos = 24/25, dD/dg = -T/25 + 24/25 g/25 = (-28, 21)/625.
    gradient = {"a": torch.tensor([[3.0]]), "b": torch.tensor([[[4.0]]])}
    target = {"a": torch.tensor([[4.0]]), "b": torch.tensor([[[3.0]]])}
    distance, slope = cosine_distance(gradient, target)
    torch.testing.assert_close(distance, torch.tensor([0.04]))
    torch.testing.assert_close(slope["a"], torch.tensor([[-28 / 625]]))
    torch.testing.assert_close(slope["b"], torch.tensor([[[21 / 625]]]))


def test_cosine_distance_at_its_ends() -> None:
    target = {"a": torch.tensor([[1.0, 2.0]] * 3)}
    gradient = {"a": torch.tensor([[2.0, 4.0], [-1.0, -2.0], [2.0, -1.0]])}
    distance, _ = cosine_distance(gradient, target)
    torch.testing.assert_close(distance, torch.tensor([0.0, 2.0, 1.0]), atol=1e-6, rtol=0)


@given(st.integers(0, 10_000), st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=30)
def test_cosine_slope_is_autograds_and_blind_to_scale(seed: int, scale: float) -> None:
    stream = torch_stream(seed, "pair")
    shapes = {"w": (2, 3, 2), "b": (2, 4)}

    def draw() -> Tensors:
        return {n: torch.randn(s, generator=stream, dtype=torch.float64) for n, s in shapes.items()}

    gradient, target = draw(), draw()
    distance, slope = cosine_distance(gradient, target)

    leaves = {n: g.clone().requires_grad_(True) for n, g in gradient.items()}
    flat = torch.cat([g.flatten(1) for g in leaves.values()], dim=1)
    expected = 1 - F.cosine_similarity(flat, torch.cat([t.flatten(1) for t in target.values()], dim=1))
    torch.testing.assert_close(distance, expected.detach())
    autograds = torch.autograd.grad(expected.sum(), list(leaves.values()))
    for mine, right in zip(slope.values(), autograds, strict=True):
        torch.testing.assert_close(mine, right)

    scaled = {n: scale * g for n, g in gradient.items()}
    torch.testing.assert_close(cosine_distance(scaled, target)[0], distance)
    radial = sum((slope[n] * gradient[n]).flatten(1).sum(1) for n in shapes)
    torch.testing.assert_close(radial, torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)


def test_a_vanished_gradient_or_target_stays_finite() -> None:
    zero, some = {"a": torch.zeros(1, 3)}, {"a": torch.ones(1, 3)}
    for gradient, target in [(zero, some), (some, zero), (zero, zero)]:
        distance, slope = cosine_distance(gradient, target)
        assert float(distance) == 1.0
        assert bool(slope["a"].isfinite().all())


def test_total_variation_by_hand() -> None:
    image = torch.tensor([[0.0, 1.0, 3.0], [2.0, 2.0, 2.0]])
    # |dx| = 1, 2, 0, 0 and |dy| = 2, 1, 1.
    torch.testing.assert_close(total_variation(image), torch.tensor(3 / 4 + 4 / 3))
    torch.testing.assert_close(total_variation(image.expand(2, 3, 2, 3)), torch.tensor(3 / 4 + 4 / 3))
    assert float(total_variation(torch.full((1, 4, 4), 0.3))) == 0.0


# Minimisation


def bowl(centre: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        return (x - centre).square().flatten(1).sum(1), 2 * (x - centre)

    return step


class Recorder:
    """Keeps every visited point and its objective."""

    def __init__(self, step: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        self.step = step
        self.points: list[Tensor] = []
        self.objectives: list[Tensor] = []

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        objective, slope = self.step(x)
        self.points.append(x.clone())
        self.objectives.append(objective)
        return objective, slope


def test_each_victim_gets_its_own_best_iterate_with_that_iterates_objective() -> None:
    stream = torch_stream(3, "bowl")
    centre, start = torch.rand((2, 5, 1, 1, 2, 2), generator=stream)
    visited = Recorder(bowl(centre))
    # So large a step overshoots again and again: the best iterate is neither the last one nor beside it.
    best_x, best = minimise(visited, start, Schedule(20, 0.4))
    objectives = torch.stack(visited.objectives)
    at = objectives.argmin(0)
    assert torch.equal(best, objectives.min(0).values)
    assert torch.equal(best_x, torch.stack(visited.points)[at, torch.arange(5)])
    assert torch.equal(best, bowl(centre)(best_x)[0])
    assert len(set(at.tolist())) > 1
    assert int(at.min()) < 20


def test_the_last_iterate_counts_and_so_does_the_start() -> None:
    start = torch.full((1, 1, 1, 1, 1), 0.5)
    falling = minimise(bowl(torch.zeros_like(start)), start, Schedule(1, 0.1))
    torch.testing.assert_close(falling[0], torch.full_like(start, 0.4))
    torch.testing.assert_close(falling[1], torch.tensor([0.16]))
    best_x, best = minimise(bowl(torch.full_like(start, 0.5)), start, Schedule(3, 0.1))
    assert torch.equal(best_x, start)
    assert best.tolist() == [0.0]


def test_no_steps_return_the_start_in_the_box() -> None:
    start = torch.tensor([-1.0, 0.25, 2.0]).view(1, 1, 1, 1, 3)
    best_x, best = minimise(bowl(torch.zeros_like(start)), start, Schedule(0, 0.1))
    assert best_x.flatten().tolist() == [0.0, 0.25, 1.0]
    torch.testing.assert_close(best, torch.tensor([1.0625]))


def test_every_visited_point_is_in_the_box() -> None:
    centre = torch.tensor([-3.0, 5.0, 0.5, 0.9]).view(1, 1, 1, 2, 2)
    start = 0.5 + torch.randn((1, 1, 1, 2, 2), generator=torch_stream(4, "start"))
    visited = Recorder(bowl(centre))
    best_x, _ = minimise(visited, start, Schedule(40, 0.3))
    points = torch.stack(visited.points)
    assert float(points.min()) >= 0.0
    assert float(points.max()) <= 1.0
    assert best_x.flatten()[:2].tolist() == [0.0, 1.0]


def test_signed_adam_by_hand() -> None:
    slopes = iter([7.0, 0.002, -5.0, 0.0])
    points: list[float] = []

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        points.append(float(x))
        return torch.zeros(1), torch.full_like(x, next(slopes))

    minimise(step, torch.full((1, 1, 1, 1, 1), 0.5), Schedule(3, 0.08))
    # Rates 0.08, 0.06 and 0.02: cosines of 0, 60 and 120 degrees. The signs +, +, - give unbiased means 1, 1, 0.071 / 0.271.
    assert points == pytest.approx([0.5, 0.42, 0.36, 0.36 - 0.02 * 0.071 / 0.271], abs=1e-6)


def test_an_iterate_without_a_number_never_wins() -> None:
    calls = iter(range(10))

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        objective = torch.tensor([1.0 if next(calls) == 2 else float("nan")])
        return objective, torch.ones_like(x)

    best_x, best = minimise(step, torch.full((1, 1, 1, 1, 1), 0.9), Schedule(8, 0.1))
    assert best.tolist() == [1.0]
    rates = [0.05 * (1 + math.cos(math.pi * n / 8)) for n in range(2)]
    torch.testing.assert_close(best_x, torch.full_like(best_x, 0.9 - sum(rates)))


def test_the_objective_goes_down_on_a_real_problem() -> None:
    problem, x = problem_of(MODELS["lenet"], batch=1, own_weights=False, masked=False)
    step = distance_and_slope(problem, tv=1e-3)
    _, best = minimise(step, x, Schedule(30, 0.05))
    assert bool((best < step(x)[0] - 1e-3).all())


@pytest.mark.parametrize("steps", [1, 2, 6, 50])
def test_the_rate_falls_along_half_a_cosine(steps: int) -> None:
    points: list[float] = []

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        points.append(float(x))
        return torch.zeros(1, dtype=x.dtype), torch.ones_like(x)

    minimise(step, torch.ones((1, 1, 1, 1, 1), dtype=torch.float64), Schedule(steps, 0.01))
    # Under a constant sign, Adam's unbiased step is the rate itself: the first step takes the full one.
    rates = [0.005 * (1 + math.cos(math.pi * n / steps)) for n in range(steps)]
    assert [a - b for a, b in pairwise(points)] == pytest.approx(rates, abs=1e-6)
