"""Adam as attackers use it: signed, with schedules and noise, and the best iterate."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from objectives import Recorder, alike, bowl
from torch import Tensor

from fedveil.attacks.optimizers import Adam, Schedule, Signs
from fedveil.fl.seeding import torch_stream


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
