"""Steps of a training that no client makes: PyTorch's Adam by its function, and the schedule that most of them follow.

PyTorch's optimiser classes load its compiler with the first one that is made, which takes two seconds of every process that
trains and does not attack; the functions behind them do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam

EPSILON = 1e-8


class Optimizer(Protocol):
    """What a training takes its steps with."""

    def zero_grad(self) -> None:
        """Forget the gradients."""

    def step(self, rate: float = 1.0) -> None:
        """Take a step at ``rate`` times the learning rate."""


class Adam:
    """Adam (Kingma and Ba 2015), with the decay of the weights beside the gradient (Loshchilov and Hutter 2019).

    >>> import torch
    >>> weight = torch.zeros(1, requires_grad=True)
    >>> adam = Adam([weight], learning_rate=0.1)
    >>> weight.sum().backward()
    >>> adam.step()
    >>> round(weight.item(), 6)
    -0.1

    Args:
        parameters: to train; one without a gradient stays where it is.
        learning_rate: above 0.
        betas: of the running means of the gradient and of its square.
        weight_decay: per step and unit of the learning rate, at least 0.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        self._parameters = list(parameters)
        self._means = [torch.zeros_like(p) for p in self._parameters]
        self._squares = [torch.zeros_like(p) for p in self._parameters]
        self._steps = [torch.zeros(()) for _ in self._parameters]
        self._learning_rate = learning_rate
        self._betas = betas
        self._weight_decay = weight_decay

    def zero_grad(self) -> None:
        """See `Optimizer`."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, rate: float = 1.0) -> None:
        """See `Optimizer`."""
        state = zip(self._parameters, self._means, self._squares, self._steps, strict=True)
        moving = [(p, p.grad, mean, square, step) for p, mean, square, step in state if p.grad is not None]
        if not moving:
            return
        parameters, gradients, means, squares, steps = map(list, zip(*moving, strict=True))
        adam(
            parameters,
            gradients,
            means,
            squares,
            [],
            steps,
            decoupled_weight_decay=True,
            amsgrad=False,
            beta1=self._betas[0],
            beta2=self._betas[1],
            lr=rate * self._learning_rate,
            weight_decay=self._weight_decay,
            eps=EPSILON,
            maximize=False,
        )


def half_cosine(done: int, steps: int) -> float:
    """Return the part of the highest rate that is due after ``done`` of ``steps`` steps: it falls along half a cosine.

    >>> [round(half_cosine(done, 4), 3) for done in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    return (1 + math.cos(math.pi * done / max(1, steps))) / 2
