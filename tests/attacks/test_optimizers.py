from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fedveil.attacks.engine.distances import squared_distance
from fedveil.attacks.engine.objective import Problem, objective
from fedveil.attacks.optimizers import LBFGS, Adam, Objective, Optimizer, Schedule, Signs
from fedveil.attacks.target.model import target_model
from fedveil.fl.models import ModelSpec, build_model
from fedveil.fl.seeding import torch_stream

LENET = ModelSpec("lenet", (1, 12, 12), 3, width=4)


Step = Callable[[Tensor], tuple[Tensor, Tensor]]


class Each:
    """An objective made of a function that gets x and the victims' positions."""

    def __init__(self, step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], at: Tensor) -> None:
        self.step = step
        self.at = at

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.step(x, self.at)

    def take(self, at: Tensor) -> Each:
        return Each(self.step, self.at[at])


def alike(step: Step) -> Each:
    """The same function for all victims."""
    return Each(lambda x, _: step(x), torch.arange(99))


def bowl(centre: Tensor) -> Each:
    def step(x: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        gap = x - (centre[at] if len(centre) > 1 else centre)
        return gap.square().flatten(1).sum(1), 2 * gap

    return Each(step, torch.arange(len(centre)))


class Recorder:
    """Keeps every visited point and its objective."""

    def __init__(self, step: Objective) -> None:
        self.step = step
        self.points: list[Tensor] = []
        self.objectives: list[Tensor] = []

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        objective, slope = self.step(x)
        self.points.append(x.clone())
        self.objectives.append(objective)
        return objective, slope

    def take(self, at: Tensor) -> Objective:
        return self.step.take(at)


def test_each_victim_gets_its_own_best_iterate_with_that_iterates_objective() -> None:
    stream = torch_stream(3, "bowl")
    centre, start = torch.rand((2, 5, 1, 1, 2, 2), generator=stream)
    visited = Recorder(bowl(centre))
    # So large a step overshoots again and again: the best iterate is neither the last one nor beside it.
    best_x, best = Adam(20, 0.4).minimise(visited, start)
    objectives = torch.stack(visited.objectives)
    at = objectives.argmin(0)
    assert torch.equal(best, objectives.min(0).values)
    assert torch.equal(best_x, torch.stack(visited.points)[at, torch.arange(5)])
    assert torch.equal(best, bowl(centre)(best_x)[0])
    assert len(set(at.tolist())) > 1
    assert int(at.min()) < 20


def test_the_last_iterate_counts_and_so_does_the_start() -> None:
    start = torch.full((1, 1, 1, 1, 1), 0.5)
    falling = Adam(1, 0.1).minimise(bowl(torch.zeros_like(start)), start)
    torch.testing.assert_close(falling[0], torch.full_like(start, 0.4))
    torch.testing.assert_close(falling[1], torch.tensor([0.16]))
    best_x, best = Adam(3, 0.1).minimise(bowl(torch.full_like(start, 0.5)), start)
    assert torch.equal(best_x, start)
    assert best.tolist() == [0.0]


def test_no_steps_return_the_start_in_the_box() -> None:
    start = torch.tensor([-1.0, 0.25, 2.0]).view(1, 1, 1, 1, 3)
    best_x, best = Adam(0, 0.1).minimise(bowl(torch.zeros_like(start)), start)
    assert best_x.flatten().tolist() == [0.0, 0.25, 1.0]
    torch.testing.assert_close(best, torch.tensor([1.0625]))


def test_every_visited_point_is_in_the_box() -> None:
    centre = torch.tensor([-3.0, 5.0, 0.5, 0.9]).view(1, 1, 1, 2, 2)
    start = 0.5 + torch.randn((1, 1, 1, 2, 2), generator=torch_stream(4, "start"))
    visited = Recorder(bowl(centre))
    best_x, _ = Adam(40, 0.3).minimise(visited, start)
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

    Adam(3, 0.08).minimise(alike(step), torch.full((1, 1, 1, 1, 1), 0.5))
    # Rates 0.08, 0.06 and 0.02: cosines of 0, 60 and 120 degrees. The signs +, +, - give unbiased means 1, 1, 0.071 / 0.271.
    assert points == pytest.approx([0.5, 0.42, 0.36, 0.36 - 0.02 * 0.071 / 0.271], abs=1e-6)


def test_an_iterate_without_a_number_never_wins() -> None:
    calls = iter(range(10))

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        objective = torch.tensor([1.0 if next(calls) == 2 else float("nan")])
        return objective, torch.ones_like(x)

    best_x, best = Adam(8, 0.1).minimise(alike(step), torch.full((1, 1, 1, 1, 1), 0.9))
    assert best.tolist() == [1.0]
    rates = [0.05 * (1 + math.cos(math.pi * n / 8)) for n in range(2)]
    torch.testing.assert_close(best_x, torch.full_like(best_x, 0.9 - sum(rates)))


@pytest.mark.parametrize("steps", [1, 2, 6, 50])
def test_the_rate_falls_along_half_a_cosine(steps: int) -> None:
    points: list[float] = []

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        points.append(float(x))
        return torch.zeros(1, dtype=x.dtype), torch.ones_like(x)

    Adam(steps, 0.01).minimise(alike(step), torch.ones((1, 1, 1, 1, 1), dtype=torch.float64))
    # Under a constant sign, Adam's unbiased step is the rate itself: the first step takes the full one.
    rates = [0.005 * (1 + math.cos(math.pi * n / steps)) for n in range(steps)]
    assert [a - b for a, b in pairwise(points)] == pytest.approx(rates, abs=1e-6)


def test_unsigned_adam_sees_the_slopes_sizes() -> None:
    slopes = iter([1.0, 0.5, 0.0])
    points: list[float] = []

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        points.append(float(x))
        return torch.zeros(1), torch.full_like(x, next(slopes))

    Adam(2, 0.1, signs="none").minimise(alike(step), torch.full((1, 1, 1, 1, 1), 0.5))
    # Unbiased: mean (0.9 * 1 + 0.5) / 1.9 over the root of (0.999 * 1 + 0.25) / 1.999; the second rate is half the first.
    second = 0.05 * (1.4 / 1.9) / math.sqrt(1.249 / 1.999)
    assert points == pytest.approx([0.5, 0.4, 0.4 - second], abs=1e-6)


def path(optimizer: Adam, slopes: list[float], start: float) -> list[float]:
    """Where one variable goes under given slopes."""
    following, points = iter([*slopes, 0.0]), []

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        points.append(float(x))
        return torch.zeros(1, dtype=x.dtype), torch.full_like(x, next(following))

    optimizer.minimise(alike(step), torch.full((1, 1), start, dtype=torch.float64), low=-99.0, high=99.0)
    return points


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("step", [1.0, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01, 0.001]),
        ("constant", [1.0] * 8),
    ],
)
def test_other_schedules(schedule: Schedule, rates: list[float]) -> None:
    # Under a constant sign, Adam's unbiased step is the rate itself.
    points = path(Adam(8, 2.0, schedule=schedule), [5.0] * 8, 50.0)
    assert [a - b for a, b in pairwise(points)] == pytest.approx([2 * rate for rate in rates], abs=1e-5)


def test_the_rate_rises_first() -> None:
    points = path(Adam(4, 1.0, schedule="constant", warmup=3), [1.0] * 4, 0.0)
    assert [a - b for a, b in pairwise(points)] == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0], abs=1e-6)


@pytest.mark.parametrize(
    ("signs", "ratio"), [("hard", 1.0), ("none", 0.1 / 3.0), ("soft", math.tanh(0.1) / math.tanh(3.0))]
)
def test_what_adam_sees_of_the_slope(signs: Signs, ratio: float) -> None:
    # The first mean is a tenth of what is seen, the second a thousandth of its square. After a first slope of 3 and a
    # second one of 0.1, worked out by hand from what is seen of them: 1 and r (tanh's scale s is 1, then 1/2).
    if signs == "soft":
        ratio = (math.tanh(0.05) / 0.5) / math.tanh(3.0)
    points = path(Adam(2, 1.0, signs=signs, schedule="constant"), [3.0, 0.1], 0.0)
    second = ((0.09 + 0.1 * ratio) / 0.19) / math.sqrt((0.000999 + 0.001 * ratio**2) / 0.001999)
    assert points == pytest.approx([0.0, -1.0, -1.0 - second], abs=1e-5)


def test_noise_has_the_size_that_was_asked_for_and_is_a_victims_own() -> None:
    start = torch.rand((2, 4000), generator=torch_stream(1, "start"), dtype=torch.float64)
    still = alike(lambda x: (-x.new_ones(len(x)) * next(falls), torch.zeros_like(x)))
    falls = iter(range(9))
    moved, _ = Adam(1, 0.5, noise=0.1, schedule="constant").minimise(still, start, low=-9.0, high=9.0)
    assert (moved - start).std(dim=1).tolist() == pytest.approx([0.05, 0.05], rel=0.05)
    assert float(torch.corrcoef(moved - start)[0, 1]) == pytest.approx(0.0, abs=0.06)


# Laws of all optimisers

each_optimizer = pytest.mark.parametrize(
    "optimizer",
    [Adam(60, 0.1), Adam(60, 0.1, signs="none"), Adam(60, 0.1, noise=0.1, schedule="step"), LBFGS(60)],
    ids=["signed", "adam", "langevin", "lbfgs"],
)


def lenet_step(victims: int, *, dtype: torch.dtype = torch.float64) -> tuple[Objective, Tensor]:
    """Squared distance to the gradients of smooth random images, and those images."""
    model = target_model(build_model(LENET), image_shape=LENET.image_shape, classes=LENET.classes)
    model.module.to(dtype)
    weights = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    coarse = torch.rand((victims, 1, 4, 4), generator=torch_stream(5, "truth"))
    truth = torch.nn.functional.interpolate(coarse, (12, 12), mode="bilinear")[:, None].to(dtype)
    labels = torch.arange(victims)[:, None] % 3
    leaves = {name: w.clone().requires_grad_(True) for name, w in weights.items()}
    problem = Problem(model, weights, {}, labels)
    gradients = [
        torch.autograd.grad(problem.loss(leaves, {}, x, y), [*leaves.values()])
        for x, y in zip(truth, labels, strict=True)
    ]
    target = {name: torch.stack(own) for name, own in zip(leaves, zip(*gradients, strict=True), strict=True)}
    step = objective(Problem(model, weights, target, labels), distance=squared_distance)
    return step, truth


@each_optimizer
def test_the_result_is_a_visited_point_in_the_box_with_the_least_objective(optimizer: Optimizer) -> None:
    step, truth = lenet_step(3)
    start = 0.5 + 0.4 * torch.randn(truth.shape, generator=torch_stream(6, "start"), dtype=truth.dtype)
    before = start.clone()
    visited = Recorder(step)
    best_x, best = optimizer.minimise(visited, start)
    assert torch.equal(start, before)
    assert len(visited.points) == optimizer.steps + 1
    points, objectives = torch.stack(visited.points), torch.stack(visited.objectives)
    assert float(points.min()) >= 0.0
    assert float(points.max()) <= 1.0
    assert torch.equal(best, objectives.min(0).values)
    assert torch.equal(best_x, points[objectives.argmin(0), torch.arange(3)])
    assert bool((best < objectives[0] / 3).all())


@each_optimizer
@pytest.mark.parametrize("flat", [None, 1e-2], ids=["to the end", "until flat"])
def test_victims_advance_as_if_alone(optimizer: Adam | LBFGS, flat: float | None) -> None:
    centre, start = torch.rand((2, 3, 1, 1, 2, 2), generator=torch_stream(7, "bowl"), dtype=torch.float64)
    # Bowls of very different steepness: line searches end at different times.
    steepness = torch.tensor([0.01, 1.0, 300.0], dtype=torch.float64)

    def step(x: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        scale = steepness[at].view(-1, 1, 1, 1, 1) * torch.tensor([[1.0, 20.0], [3.0, 0.1]], dtype=torch.float64)
        gap = x - centre[at]
        return (scale * gap.square()).flatten(1).sum(1), 2 * scale * gap

    valley = Each(step, torch.arange(3))
    # Long enough for looks at who has stopped; some of these victims stop earlier than others.
    some = replace(optimizer, steps=120, flat=flat)
    together_x, together = some.minimise(valley, start)
    for index in range(3):
        one = torch.tensor([index])
        alone_x, alone = some.minimise(valley.take(one), start[one])
        torch.testing.assert_close(alone_x, together_x[one], rtol=0, atol=1e-12)
        torch.testing.assert_close(alone, together[one])


@each_optimizer
def test_a_start_without_a_number_does_not_spoil_the_others(optimizer: Optimizer) -> None:
    def step(x: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = bowl(torch.full_like(x, 0.2))(x)
        bad = at == 0
        return value.masked_fill(bad, torch.nan), slope.masked_fill(bad.view(-1, 1, 1, 1, 1), torch.nan)

    _, best = optimizer.minimise(Each(step, torch.arange(2)), torch.full((2, 1, 1, 2, 2), 0.7))
    assert math.isinf(float(best[0]))
    assert float(best[1]) < 1e-3


@each_optimizer
def test_bounds_may_be_tensors_or_missing(optimizer: Adam | LBFGS) -> None:
    centre = torch.tensor([[-2.0, 3.0, 0.4], [5.0, 0.3, -4.0]], dtype=torch.float64)
    low = torch.tensor([[-1.0, 0.0, 0.0], [0.0, 0.0, -torch.inf]], dtype=torch.float64)
    some = replace(optimizer, steps=400)
    best_x, _ = some.minimise(bowl(centre), torch.full_like(centre, 0.5), low=low, high=torch.tensor([2.0, 2.0, 1.0]))
    expected = torch.tensor([[-1.0, 2.0, 0.4], [2.0, 0.3, -4.0]], dtype=torch.float64)
    torch.testing.assert_close(best_x, expected, rtol=0, atol=2e-2)


@each_optimizer
def test_who_is_flat_leaves_the_batch(optimizer: Adam | LBFGS) -> None:
    # Victims 0 to 2 can't fall; victim 3 goes down a valley so narrow that the steps do not reach its end.
    seen: list[list[int]] = []
    steepness = torch.logspace(0, 6, 300, dtype=torch.float64)

    def step(x: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(at.tolist())
        falling = (at == 3).view(-1, 1).to(x)
        gap = x - 0.7
        return 1 - falling[:, 0] + (falling * steepness * gap.square()).sum(1), 2 * falling * steepness * gap

    some = replace(optimizer, steps=170, flat=1e-6)
    _, best = some.minimise(Each(step, torch.arange(4)), torch.zeros((4, 300), dtype=torch.float64))
    assert {tuple(own) for own in seen} == {(0, 1, 2, 3), (3,)}
    assert 50 <= len([own for own in seen if len(own) == 4]) <= 101
    assert best[:3].tolist() == [1.0] * 3
    assert 0 < float(best[3]) < 1e5


# L-BFGS


def quadratic(count: int, size: int, condition: float) -> tuple[Each, Tensor]:
    """Ill-conditioned bowls in random directions whose lowest points lie inside the box."""
    stream = torch_stream(8, "quadratic")
    turn = torch.linalg.qr(torch.randn((count, size, size), generator=stream, dtype=torch.float64))[0]
    scales = torch.logspace(0, math.log10(condition), size, dtype=torch.float64)
    matrix = turn @ torch.diag(scales) @ turn.mT
    centre = 0.3 + 0.4 * torch.rand((count, size), generator=stream, dtype=torch.float64)

    def step(x: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        gap = x.flatten(1) - centre[at]
        slope = torch.einsum("vij,vj->vi", matrix[at], gap)
        return (gap * slope).sum(1) / 2, slope.view_as(x)

    return Each(step, torch.arange(count)), centre


def by_torch(step: Objective, start: Tensor, evaluations: int) -> float:
    """The lowest objective that PyTorch's own L-BFGS reaches on one victim."""
    x = start.clone()
    optimizer = torch.optim.LBFGS(
        [x], max_iter=evaluations, max_eval=evaluations, history_size=50, line_search_fn="strong_wolfe",
        tolerance_grad=0.0, tolerance_change=0.0,
    )  # fmt: skip
    seen: list[float] = []

    def closure() -> float:
        value, x.grad = step(x)
        seen.append(float(value))
        return seen[-1]

    optimizer.step(closure)
    return min(seen)


@pytest.mark.parametrize("condition", [1.0, 30.0, 1000.0])
def test_on_quadratics_it_gets_as_low_as_pytorchs(condition: float) -> None:
    step, centre = quadratic(4, 9, condition)
    start = torch.full((4, 1, 1, 3, 3), 0.5, dtype=torch.float64)
    evaluations = 60
    best_x, best = LBFGS(evaluations - 1).minimise(step, start)
    for index in range(4):
        theirs = by_torch(step.take(torch.tensor([index])), start[index : index + 1], evaluations)
        assert float(best[index]) <= 1.01 * theirs + 1e-14
    torch.testing.assert_close(best_x.flatten(1), centre, rtol=0, atol=1e-5)


def test_on_a_real_inversion_it_gets_as_low_as_pytorchs() -> None:
    step, truth = lenet_step(1)
    start = torch.full_like(truth, 0.5)
    evaluations = 150
    best_x, best = LBFGS(evaluations - 1).minimise(step, start)
    assert float(best) <= 1.25 * by_torch(step, start, evaluations)
    assert float(best) < 1e-5 * float(step(start)[0])
    assert float((best_x - truth).square().mean()) < 5e-4


def test_bounds_hold_pixels_and_the_others_still_reach_their_lowest_point() -> None:
    # x0 wants to -1 and pulls x1 along: at x0 = 0, x1's lowest point is 0.3, by hand.
    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.flatten(1).unbind(1)
        slope = torch.stack([2 * (a + 1) + (b - 0.3), 2 * (b - 0.3) + a], dim=1)
        return (a + 1).square() + (b - 0.3).square() + a * (b - 0.3), slope.view_as(x)

    best_x, _ = LBFGS(30).minimise(alike(step), torch.tensor([0.9, 0.9], dtype=torch.float64).view(1, 1, 1, 1, 2))
    torch.testing.assert_close(best_x.flatten(), torch.tensor([0.0, 0.3], dtype=torch.float64), rtol=0, atol=1e-8)


def test_a_converged_victim_is_frozen_while_another_goes_on() -> None:
    step, centre = quadratic(2, 9, 300.0)
    start = torch.full((2, 1, 1, 3, 3), 0.5, dtype=torch.float64)
    start[0] = centre[0].view(1, 1, 3, 3)
    visited = Recorder(step)
    LBFGS(40).minimise(visited, start)
    points = torch.stack(visited.points)
    assert torch.equal(points[:, 0], start[0].expand_as(points[:, 0]))
    assert float((points[-1, 1].flatten() - centre[1]).abs().max()) < 1e-4


def test_a_first_step_that_is_too_short_grows() -> None:
    start = torch.full((1, 1, 1, 1, 1), 0.9, dtype=torch.float64)
    best_x, _ = LBFGS(12, first=1e-3).minimise(bowl(torch.full_like(start, 0.1)), start)
    torch.testing.assert_close(best_x, torch.full_like(start, 0.1), rtol=0, atol=1e-8)
