from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from fedveil.attacks.target.piecewise import mapped, rectified

X = torch.tensor([[-1.0, 0.0, 2.0], [3.0, 0.5, -2.0]], dtype=torch.float64)
ALONG = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 1.0, 0.5]], dtype=torch.float64)
MATRIX = torch.tensor([[1.0, 2.0], [0.0, 1.0], [3.0, -1.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("mine", "theirs"), [(rectified, torch.relu), (lambda x: mapped(x, MATRIX), lambda x: x @ MATRIX)]
)
def test_all_derivatives_are_pytorchs(mine: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor]) -> None:
    def found(function: Callable[[Tensor], Tensor]) -> list[Tensor]:
        def loss(x: Tensor) -> Tensor:
            return function(x.sin()).square().sum()

        def forward_reverse(x: Tensor, along: Tensor) -> Tensor:
            slope: Tensor = jvp(grad(loss), (x,), (along,))[1]
            return slope

        def reverse_forward(x: Tensor, along: Tensor) -> Tensor:
            slope: Tensor = grad(lambda x: jvp(loss, (x,), (along,))[1])(x)
            return slope

        return [vmap(loss)(X), vmap(grad(loss))(X), vmap(forward_reverse)(X, ALONG), vmap(reverse_forward)(X, ALONG)]

    for one, other in zip(found(mine), found(theirs), strict=True):
        torch.testing.assert_close(one, other)
