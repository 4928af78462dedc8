from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedveil.fl.errors import SettingError
from fedveil.fl.optimizers import OPTIMIZERS, SGD, Adam, LocalOptimizer

torch.set_num_threads(1)


def walked(rule: LocalOptimizer, gradients: list[float], *, rate: float, start: float = 1.0) -> list[float]:
    """Where one weight stands after each step."""
    weight, turn = torch.tensor([start], dtype=torch.float64), rule.begin()
    places = []
    for gradient in gradients:
        (direction,) = turn([torch.tensor([gradient], dtype=torch.float64)], [weight])
        weight = weight - rate * direction
        places.append(weight.item())
    return places


def test_plain_sgd_gives_the_gradients_themselves() -> None:
    gradients = [torch.ones(2), torch.zeros(3)]
    assert all(a is b for a, b in zip(SGD().begin()(gradients, gradients), gradients, strict=True))


def test_momentum_worked_by_hand() -> None:
    # Speeds 1, 0.5 + 2, 1.25 + 4, from a rate of 0.1 on.
    assert walked(SGD(momentum=0.5), [1, 2, 4], rate=0.1) == pytest.approx([0.9, 0.65, 0.125])


def test_classical_decay_worked_by_hand() -> None:
    # 1 - 0.1 (2 + 0.5 * 1) = 0.75, and 0.75 - 0.1 (0.5 * 0.75).
    assert walked(SGD(weight_decay=0.5), [2, 0], rate=0.1) == pytest.approx([0.75, 0.7125])
    # It gathers speed as the gradient does: speeds 2.5 and 1.25 + 0.375.
    assert walked(SGD(momentum=0.5, weight_decay=0.5), [2, 0], rate=0.1) == pytest.approx([0.75, 0.5875])


def test_adam_worked_by_hand() -> None:
    # The first step is the gradient's sign. Then m = (0.09 + 0.3) / 0.19, v = (0.999 + 9) / 1.999: 2.0526 / 2.2365.
    assert walked(Adam(), [1, 3], rate=0.1) == pytest.approx([0.9, 0.9 - 0.0917777], abs=1e-6)


def test_adams_decay_leaves_the_moments_alone() -> None:
    # 1 - 0.1 (1 + 0.5 * 1), and from 0.85 another 0.1 (1 + 0.5 * 0.85).
    assert walked(Adam(weight_decay=0.5), [2, 2], rate=0.1) == pytest.approx([0.85, 0.7075])


RULES: dict[str, tuple[LocalOptimizer, Callable[..., torch.optim.Optimizer]]] = {
    "sgd": (SGD(), torch.optim.SGD),
    "momentum": (SGD(momentum=0.9), lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9)),
    "both": (
        SGD(momentum=0.8, weight_decay=0.1),
        lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.8, weight_decay=0.1),
    ),
    "adam": (Adam(), torch.optim.Adam),
    "adamw": (Adam(weight_decay=0.1), lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0.1)),
}


@pytest.mark.parametrize("name", RULES)
@given(seed=st.integers(0, 2**32), rate=st.floats(1e-4, 0.1), steps=st.integers(1, 6))
@settings(max_examples=15)
def test_a_rule_walks_as_pytorchs_does(name: str, seed: int, rate: float, steps: int) -> None:
    rule, theirs = RULES[name]
    stream = torch.Generator().manual_seed(seed)
    mine: list[Tensor] = [torch.randn(shape, generator=stream, dtype=torch.float64) for shape in ((3, 2), (3,))]
    parameters = [nn.Parameter(weight.clone()) for weight in mine]
    optimizer, turn = theirs(parameters, lr=rate), rule.begin()
    for _ in range(steps):
        gradients = [torch.randn(weight.shape, generator=stream, dtype=weight.dtype) for weight in mine]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        mine = [w - rate * d for w, d in zip(mine, turn(gradients, mine), strict=True)]
    for own, parameter in zip(mine, parameters, strict=True):
        torch.testing.assert_close(own, parameter.detach(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("rule", [SGD(momentum=0.9, weight_decay=0.1), Adam(weight_decay=0.1)], ids=repr)
def test_nothing_is_remembered_of_an_earlier_turn_and_what_is_given_stays(rule: LocalOptimizer) -> None:
    gradient, weight = torch.ones(2), torch.full((2,), 3.0)
    first = rule.begin()
    before = first([gradient], [weight])[0].clone()
    first([5 * gradient], [weight])
    assert torch.equal(rule.begin()([gradient], [weight])[0], before)
    assert torch.equal(gradient, torch.ones(2))
    assert torch.equal(weight, torch.full((2,), 3.0))


def test_what_makes_gradients_of_a_weight_change() -> None:
    assert SGD().plain(9)
    assert SGD(momentum=0.9).plain(1), "it begins without speed"
    assert not SGD(momentum=0.9).plain(2)
    assert not SGD(weight_decay=0.1).plain(1)
    assert not Adam().plain(1)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SGD(momentum=1.0), "optimizer sgd: momentum is 1.0; it must be at least 0 and below 1"),
        (lambda: SGD(weight_decay=-1.0), "optimizer sgd: weight_decay is -1.0; it must be at least 0"),
        (lambda: Adam(weight_decay=float("nan")), "optimizer adam: weight_decay is nan; it must be at least 0"),
    ],
)
def test_impossible_settings_are_refused_in_words(make: Callable[[], LocalOptimizer], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        make()


def test_each_has_its_name() -> None:
    assert {name: OPTIMIZERS[name]() for name in OPTIMIZERS} == {"adam": Adam(), "sgd": SGD()}
    assert (SGD.name, Adam.name) == ("sgd", "adam")
