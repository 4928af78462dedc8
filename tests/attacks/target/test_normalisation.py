from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from fedveil.attacks.target.normalisation import standardised
from fedveil.fl.seeding import torch_stream

EPS = 1e-2


def by_hand(x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch_stream(0, "rows", *map(str, shape)), dtype=torch.float64)


def test_a_row_by_hand() -> None:
    # Mean 2, variance 8/3.
    found = standardised(torch.tensor([[0.0, 2.0, 4.0]]), 1 / 3)
    torch.testing.assert_close(found, torch.tensor([[-2.0, 0.0, 2.0]]) / 3**0.5)
    assert standardised(torch.full((2, 1), 7.0), EPS).tolist() == [[0.0], [0.0]]


def test_both_orders_of_two_derivatives_are_those_of_the_formula() -> None:
    x, along = normal(4, 3, 5), normal(4, 3, 5).flip(0)

    def slopes(standardise: object) -> list[Tensor]:
        def loss(x: Tensor) -> Tensor:
            y: Tensor = standardise(x, EPS)  # type: ignore[operator]
            return (y.exp() * torch.arange(5.0)).sum()

        def forward_reverse(x: Tensor, along: Tensor) -> Tensor:
            found: Tensor = jvp(grad(loss), (x,), (along,))[1]
            return found

        def reverse_forward(x: Tensor, along: Tensor) -> Tensor:
            found: Tensor = grad(lambda x: jvp(loss, (x,), (along,))[1])(x)
            return found

        return [
            vmap(loss)(x),
            vmap(grad(loss))(x),
            vmap(forward_reverse)(x, along),
            vmap(reverse_forward)(x, along),
        ]

    for mine, theirs in zip(slopes(standardised), slopes(by_hand), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_a_third_derivative_is_refused_not_wrong() -> None:
    def second(x: Tensor) -> Tensor:
        found: Tensor = grad(lambda x: grad(lambda x: standardised(x, EPS)[0].exp())(x)[0])(x)[1]
        return found

    with pytest.raises(NotImplementedError, match="can be differentiated once, no more"):
        grad(second)(normal(5))


def test_autograd_differentiates_it_twice() -> None:
    x = normal(2, 6).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: standardised(x, EPS), [x])
    assert torch.autograd.gradgradcheck(lambda x: standardised(x, EPS), [x])
