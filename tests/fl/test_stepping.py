from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedveil.fl.seeding import torch_stream
from fedveil.fl.stepping import Adam, half_cosine

SHAPES = ((3, 2, 3, 3), (5,), (), (4, 7))


def weights() -> list[Tensor]:
    stream = torch_stream(0, "weights")
    return [torch.randn(shape, generator=stream).requires_grad_(True) for shape in SHAPES]


@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.99)])
def test_it_is_pytorchs_to_the_bit(decay: float, betas: tuple[float, float]) -> None:
    own, theirs = weights(), weights()
    adam = Adam(own, learning_rate=0.02, betas=betas, weight_decay=decay)
    oracle = torch.optim.AdamW(theirs, lr=0.02, betas=betas, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(oracle, lambda step: half_cosine(step, 30))
    stream = torch_stream(1, "gradients")
    for step in range(30):
        adam.zero_grad()
        oracle.zero_grad()
        for at, (mine, other) in enumerate(zip(own, theirs, strict=True)):
            if (step + at) % 5:  # one without a gradient stays, and its count of steps with it
                mine.grad = torch.randn(mine.shape, generator=stream)
                other.grad = mine.grad.clone()
        adam.step(half_cosine(step, 30))
        oracle.step()
        schedule.step()
        assert all(torch.equal(mine, other) for mine, other in zip(own, theirs, strict=True)), step


def test_without_any_gradient_nothing_moves() -> None:
    own = weights()
    Adam(own, learning_rate=0.1, weight_decay=0.5).step()
    assert all(torch.equal(mine, before) for mine, before in zip(own, weights(), strict=True))


@pytest.mark.parametrize("steps", [1, 7, 200])
def test_the_rate_falls_as_pytorchs_schedule_does(steps: int) -> None:
    oracle = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(oracle, steps)
    for step in range(steps + 1):
        assert half_cosine(step, steps) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        oracle.step()
        schedule.step()
