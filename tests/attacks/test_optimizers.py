"""Laws of all optimisers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from objectives import Each, Recorder, bowl, lenet_step
from torch import Tensor

from fedveil.attacks.optimizers import LBFGS, Adam, Optimizer
from fedveil.fl.seeding import torch_stream

each_optimizer = pytest.mark.parametrize(
    "optimizer",
    [Adam(60, 0.1), Adam(60, 0.1, signs="none"), Adam(60, 0.1, noise=0.1, schedule="step"), LBFGS(60)],
    ids=["signed", "adam", "langevin", "lbfgs"],
)


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
