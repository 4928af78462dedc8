"""L-BFGS of many victims at once gets as low as PyTorch's own of one, and stays in the box."""

from __future__ import annotations

import math

import pytest
import torch
from objectives import Each, Recorder, alike, bowl, lenet_step
from torch import Tensor

from fedveil.attacks.optimizers import LBFGS, Objective
from fedveil.fl.seeding import torch_stream


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
