from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fedveil.fl.until_flat as module
from fedveil.fl.data.images import Images
from fedveil.fl.seeding import torch_stream
from fedveil.fl.stepping import Adam
from fedveil.fl.until_flat import FIRST, Curve, Trained, hold_out, train_until_flat

LEAST = 60


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST", LEAST)


class Counting(nn.Module):
    """Knows at which step its weights were kept."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))


def run(errors: list[float], *, steps: int, tolerance: float = 0.05) -> tuple[Trained[Counting], int]:
    """Train with held-out errors as given, look by look; the last one is repeated."""
    answers = iter(errors)
    last = [errors[-1]]
    taken = [0]

    def loss(module: Counting) -> Tensor:
        taken[0] += 1
        module.seen.fill_(taken[0])
        return -module.weight.sum()

    def error(module: Counting) -> float:
        assert not module.training
        last[0] = next(answers, last[0])
        return last[0]

    trained = train_until_flat(
        Counting(), loss, error, steps=steps, tolerance=tolerance, learning_rate=0.1, optimizer=Adam
    )
    return trained, taken[0]


def test_it_ends_when_a_doubling_brings_nothing_and_the_rate_falls_over_a_third_more() -> None:
    trained, taken = run([1.0], steps=10_000)
    curve = trained.curve
    assert curve.flat
    last = curve.steps[-2]
    assert LEAST <= last < LEAST * 2 ** (1 / 4) + 2
    assert taken == curve.steps[-1] == last + -(-last // 3)
    assert curve.steps[0] == FIRST
    # Four looks to a doubling.
    assert [-(-step * 2 ** (1 / 4) // 1) for step in curve.steps[:-2]] == list(curve.steps[1:-1])


@pytest.mark.parametrize("steps", [1, 2, 25, 40, 150])
def test_it_never_takes_more_steps_than_it_may_and_then_is_not_flat(steps: int) -> None:
    trained, taken = run([1 / (1 + n) for n in range(100)], steps=steps)
    assert taken == trained.curve.steps[-1] == steps
    assert not trained.curve.flat
    assert trained.curve.error == min(trained.curve.errors) == trained.curve.errors[-1]


def test_a_curve_that_still_falls_by_more_than_the_tolerance_is_not_flat() -> None:
    falling = [0.98**n for n in range(60)]  # by 8 % from one doubling to the next
    assert run(falling, steps=300, tolerance=0.10)[0].curve.flat
    assert not run(falling, steps=300, tolerance=0.05)[0].curve.flat


def test_the_weights_that_did_best_are_kept() -> None:
    trained, _ = run([1.0, 0.5, 0.7], steps=100)
    assert trained.curve.error == 0.5
    # Those of the second look.
    assert int(trained.module.seen) == trained.curve.steps[1]
    assert not trained.module.weight.requires_grad
    worst, _ = run([0.5, 1.0], steps=100)
    assert int(worst.module.seen) == worst.curve.steps[0]
    assert float(worst.module.weight.detach()) < float(trained.module.weight.detach())


def test_the_curve_knows_its_least_error() -> None:
    assert Curve((1, 2, 3), (0.3, 0.1, 0.2), flat=True).error == 0.1


# What is held out


def images(groups: list[int] | None, count: int = 20) -> Images:
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(count, 1, 4, 4)
    return Images(pixels, torch.arange(count) % 2, None if groups is None else torch.tensor(groups))


def test_a_fifth_is_held_out_and_near_copies_stay_together() -> None:
    train, held = hold_out(images(None), torch_stream(1, "x"))
    assert (len(train), len(held)) == (16, 4)
    assert not set(train.pixels[:, 0, 0, 0].tolist()) & set(held.pixels[:, 0, 0, 0].tolist())
    other, _ = hold_out(images(None), torch_stream(2, "x"))
    assert other.pixels[:, 0, 0, 0].tolist() != train.pixels[:, 0, 0, 0].tolist()
    train, held = hold_out(images([at // 2 for at in range(20)]), torch_stream(1, "x"))
    assert train.groups is not None
    assert held.groups is not None
    assert not set(train.groups.tolist()) & set(held.groups.tolist())
    assert len(held) == 4


def test_with_too_few_to_spare_all_are_trained_and_measured_on() -> None:
    for few in (images(None, 4), images([1] * 20)):
        train, held = hold_out(few, torch_stream(1, "x"))
        assert len(train) == len(held) == len(few)
