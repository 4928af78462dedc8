"""Adam in a box (Kingma and Ba 2015), with what gradient inversion has added to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedveil.attacks.optimizers.descent import Descent, Objective, descend

Signs = Literal["hard", "soft", "none"]
"""What Adam sees of the gradient: its signs, its squashed values, or itself."""
Schedule = Literal["cosine", "step", "constant"]
"""How the rate falls: along half a cosine, tenfold at 3/8, 5/8 and 7/8 of the steps, or not at all."""

_FIRST, _SECOND, _LEAST = 0.9, 0.999, 1e-8
"""Decay of the two means, and what keeps the denominator from 0."""


def _soft(slope: Tensor, share: float) -> Tensor:
    """tanh(s g) / s, where s falls from 1 to 0: from squashed values to the gradient itself."""
    left = max(1 - share, 1e-6)
    return (left * slope).tanh() / left


_SEEN: Mapping[Signs, Callable[[Tensor, float], Tensor]] = {
    "hard": lambda slope, _: slope.sign(),
    "soft": _soft,
    "none": lambda slope, _: slope,
}
_FALLING: Mapping[Schedule, Callable[[float], float]] = {
    "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share)),
    "step": lambda share: 0.1 ** sum(share >= at for at in (3 / 8, 5 / 8, 7 / 8)),
    "constant": lambda _: 1.0,
}


@dataclass(frozen=True)
class Adam:
    """Adam, whose rate falls, and which may see the gradient's signs alone.

    Inverting Gradients (Geiping et al. 2020) divides the rate by ten at 3/8, 5/8 and 7/8 of its thousands of steps; of a
    few hundred steps that leaves most too small to matter (docs/method.md).

    Attributes:
        steps: iterations.
        learning_rate: at the start, in units of x (of the [0, 1] pixel range, for images).
        signs: see `Signs`.
        schedule: see `Schedule`.
        warmup: iterations in which the rate rises to its first value; the schedule runs on beneath.
        noise: deviation of the Gaussian noise on each step, in units of the rate (Langevin dynamics, as in See through
            Gradients, Yin et al. 2021). It is drawn by a stream that the victim's start seeds, whoever else is in the batch.
        flat: a victim whose best objective falls by less than this share over 50 evaluations stops; None never. A rate that
            falls makes up late for what looked flat: leave it None with a schedule.
    """

    steps: int
    learning_rate: float
    signs: Signs = "hard"
    schedule: Schedule = "cosine"
    warmup: int = 0
    noise: float = 0.0
    flat: float | None = None
    image_copies: ClassVar[int] = 10
    """How many times over it keeps what is as large as x, when it keeps most."""

    def minimise(
        self, objective: Objective, start: Tensor, *, low: float | Tensor = 0.0, high: float | Tensor = 1.0
    ) -> tuple[Tensor, Tensor]:
        """See `Optimizer`."""
        state = Descent.at(start, low, high)
        state.own = {"mean": torch.zeros_like(state.x), "square": torch.zeros_like(state.x)}
        if self.noise:
            state.own["seed"] = start.flatten(1).double().sum(1).view(torch.int64) ^ _SALT
        return descend(objective, state, self._advance, steps=self.steps, flat=self.flat)

    def rate(self, number: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        rising = min(1.0, (number + 1) / self.warmup) if self.warmup else 1.0
        return self.learning_rate * rising * _FALLING[self.schedule](number / max(1, self.steps))

    def _advance(self, state: Descent, value: Tensor, slope: Tensor, number: int) -> None:
        seen = _SEEN[self.signs](slope, number / max(1, self.steps))
        mean, square = state.own["mean"], state.own["square"]
        mean.lerp_(seen, 1 - _FIRST)
        square.mul_(_SECOND).addcmul_(seen, seen, value=1 - _SECOND)
        first, second = 1 - _FIRST ** (number + 1), 1 - _SECOND ** (number + 1)
        rate = self.rate(number)
        step = mean / (square.sqrt() / math.sqrt(second) + _LEAST) * (rate / first)
        if self.noise:
            step = step + self.noise * rate * _noise(state.own["seed"], number, step)
        # A new tensor: the best iterate may be the old one.
        state.x = (state.x - step).clamp_(state.low, state.high)


_SALT = 0x5DEECE66D


def _noise(seeds: Tensor, number: int, like: Tensor) -> Tensor:
    """Return standard Gaussian noise of one step, (V, ...), each victim's from its own stream."""
    drawn = []
    for seed in seeds.tolist():
        stream = torch.Generator().manual_seed((seed + 1_000_003 * number) % 2**63)
        drawn.append(torch.randn(like.shape[1:], generator=stream, dtype=like.dtype))
    return torch.stack(drawn).to(like.device)
