"""How a client makes steps of gradients: plain SGD, with momentum or weight decay, or Adam.

Every rule here turns gradients into directions, and a step is the learning rate times a direction. That is all there is to
say to those who replay a client, so attackers use the same objects.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedveil.fl.errors import SettingError
from fedveil.fl.registry import Registry

Turn = Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]]
"""Gradients, and the parameters at which they were taken, to directions: a step subtracts learning rate times direction."""

BETAS = (0.9, 0.999)
EPSILON = 1e-8


@dataclass(frozen=True, kw_only=True)
class LocalOptimizer(ABC):
    """A rule with its settings. What it remembers from step to step begins anew with each `begin`."""

    name: ClassVar[str]

    @abstractmethod
    def begin(self) -> Turn:
        """Return the rule for one client's turn in one round: nothing is remembered of earlier rounds, nor of clients."""

    @abstractmethod
    def plain(self, steps: int) -> bool:
        """Whether so many steps are the learning rate times the sum of the gradients."""


OPTIMIZERS: Registry[type[LocalOptimizer]] = Registry("optimizer")


def _check_decay(name: str, decay: float) -> None:
    if not decay >= 0:
        raise SettingError(f"optimizer {name}", "weight_decay", decay, "it must be at least 0")


@OPTIMIZERS.register("sgd")
@dataclass(frozen=True, kw_only=True)
class SGD(LocalOptimizer):
    """Stochastic gradient descent.

    >>> import torch
    >>> turn = SGD(momentum=0.5).begin()
    >>> [turn([torch.ones(1)], [torch.zeros(1)])[0].item() for _ in range(3)]
    [1.0, 1.5, 1.75]

    Attributes:
        momentum: of the heavy ball, as in PyTorch without dampening or Nesterov's step; at least 0 and below 1. Each round
            begins without speed.
        weight_decay: times the weights, added to the gradient (before momentum); at least 0.
    """

    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise SettingError("optimizer sgd", "momentum", self.momentum, "it must be at least 0 and below 1")
        _check_decay(self.name, self.weight_decay)

    def begin(self) -> Turn:
        """See `LocalOptimizer.begin`."""
        speeds: list[Tensor] = []

        def turn(gradients: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
            found = list(gradients)
            if self.weight_decay:
                found = [g.add(p, alpha=self.weight_decay) for g, p in zip(found, parameters, strict=True)]
            if self.momentum:
                before = speeds or [torch.zeros_like(g) for g in found]
                found = speeds[:] = [self.momentum * v + g for v, g in zip(before, found, strict=True)]
            return found

        return turn

    def plain(self, steps: int) -> bool:
        """See `LocalOptimizer.plain`."""
        return not self.weight_decay and (not self.momentum or steps == 1)


PLAIN_SGD = SGD()
"""Each step is the learning rate times a gradient: what is meant where no optimiser is named."""


@OPTIMIZERS.register("adam")
@dataclass(frozen=True, kw_only=True)
class Adam(LocalOptimizer):
    """Adam with betas 0.9 and 0.999 (Kingma and Ba 2015, arXiv 1412.6980), whose decay is AdamW's.

    Both moments begin at zero in each round, with the paper's correction for that.

    Attributes:
        weight_decay: times the weights, added to the direction, apart from the moments (Loshchilov and Hutter 2019,
            arXiv 1711.05101); at least 0.
    """

    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_decay(self.name, self.weight_decay)

    def begin(self) -> Turn:
        """See `LocalOptimizer.begin`."""
        first, second = BETAS
        means: list[Tensor] = []
        squares: list[Tensor] = []
        steps = 0

        def turn(gradients: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
            nonlocal steps
            steps += 1
            nothing = [torch.zeros_like(g) for g in gradients]
            means[:] = [m.lerp(g, 1 - first) for m, g in zip(means or nothing, gradients, strict=True)]
            squares[:] = [v.lerp(g * g, 1 - second) for v, g in zip(squares or nothing, gradients, strict=True)]
            found = [
                (m / (1 - first**steps)) / ((v / (1 - second**steps)).sqrt() + EPSILON)
                for m, v in zip(means, squares, strict=True)
            ]
            if self.weight_decay:
                found = [d.add(p, alpha=self.weight_decay) for d, p in zip(found, parameters, strict=True)]
            return found

        return turn

    def plain(self, steps: int) -> bool:
        """See `LocalOptimizer.plain`."""
        return False
