"""Muon: momentum whose steps are made orthogonal, for the small networks that an attacker trains."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fedveil.fl.stepping import Adam

MOMENTUM = 0.95
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
SMALLEST = 8
"""A weight with fewer outputs than this is stepped by Adam, as vectors are."""


def orthogonal(matrix: Tensor) -> Tensor:
    """Return about the nearest matrix with singular values of 1, (a, b) to (a, b): between 0.7 and 1.2, to be exact.

    A quintic Newton-Schulz iteration, which takes products alone; its coefficients are tuned for speed, not for exactness.
    """
    first, third, fifth = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = first * x + (third * square + fifth * square @ square) @ x
    orthogonal: Tensor = x.T if tall else x
    return orthogonal


class Muon:
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for matrices and kernels, Adam for everything else.

    Departs from the description in that the first and the last layer are no exception, unless they have few outputs. An
    inverse that undoes noise gets as far with it in half the steps as with Adam.

    Args:
        parameters: to train.
        learning_rate: of Muon; Adam's is a tenth of it.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, learning_rate: float) -> None:
        every = list(parameters)
        self._matrices = [p for p in every if p.ndim >= 2 and len(p) >= SMALLEST]
        self._momenta = [torch.zeros_like(p) for p in self._matrices]
        chosen = {id(p) for p in self._matrices}
        self._adam = Adam([p for p in every if id(p) not in chosen], learning_rate=0.1 * learning_rate)
        self._learning_rate = learning_rate

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self._adam.zero_grad()
        for parameter in self._matrices:
            parameter.grad = None

    @torch.no_grad()
    def step(self, rate: float = 1.0) -> None:
        """Take a step at ``rate`` times the learning rate. A parameter without a gradient stays."""
        self._adam.step(rate)
        for parameter, momentum in zip(self._matrices, self._momenta, strict=True):
            if parameter.grad is None:
                continue
            momentum.mul_(MOMENTUM).add_(parameter.grad)
            direction = orthogonal((parameter.grad + MOMENTUM * momentum).flatten(1))
            outputs, inputs = direction.shape
            size = rate * self._learning_rate * max(1.0, outputs / inputs) ** 0.5
            parameter.sub_(size * direction.view_as(parameter))
