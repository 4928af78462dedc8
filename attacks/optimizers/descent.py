"""What all optimisers share: the loop, each victim's best iterate, and who has stopped.

Inside the loop the device is read once in `CHECK` evaluations, so that a GPU hardly waits. Victims that have stopped stay
in the batch until they are the half of it; then the batch is halved, so that few shapes of it occur.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedveil.attacks.optimizers.progress import evaluated

CHECK = 50
"""Evaluations between two looks at who has stopped."""


class Objective(Protocol):
    """What is minimised: for each victim a number of its own variables alone. The variables need not be images."""

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the objective (V,) at x (V, ...) and its gradient, shaped as x."""

    def take(self, at: Tensor) -> Objective:
        """Return the objective of the victims at these positions (n,) alone."""


class Optimizer(Protocol):
    """Settings of an optimiser."""

    @property
    def steps(self) -> int:
        """Evaluations of objective and gradient beside that of the start."""

    def minimise(
        self, objective: Objective, start: Tensor, *, low: float | Tensor = 0.0, high: float | Tensor = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Return the best iterate of each victim by its own objective.

        Args:
            objective: with its gradient.
            start: (V, ...).
            low: least values, a number or broadcastable to ``start``; may be infinite.
            high: greatest values.

        Returns:
            (V, ...) between the bounds, and the objective (V,) *of those*.
        """


@dataclass
class Descent:
    """The state of one run: all tensors are (V, ...), and so can be cut down to those victims that go on.

    Attributes:
        x: where to evaluate next.
        low: bounds, shaped as x.
        high: likewise.
        own: what the optimiser remembers beside that.
        best_x: best iterates.
        best: their objectives; infinite before the first evaluation.
        stopped: victims whose result is settled.
    """

    x: Tensor
    low: Tensor
    high: Tensor
    own: dict[str, Tensor]
    best_x: Tensor
    best: Tensor
    stopped: Tensor

    @classmethod
    def at(cls, start: Tensor, low: float | Tensor, high: float | Tensor) -> Descent:
        """Begin at ``start`` (V, ...), moved between the bounds; the start itself is left alone."""
        lowest, highest = (
            torch.as_tensor(bound, dtype=start.dtype, device=start.device).expand_as(start) for bound in (low, high)
        )
        x = start.clamp(lowest, highest)
        best = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        return cls(x, lowest, highest, {}, x, best, torch.zeros_like(best, dtype=torch.bool))

    def take(self, at: Tensor) -> Descent:
        """Return the state of the victims at these positions."""
        own = {name: tensor[at] for name, tensor in self.own.items()}
        rest = (self.low, self.high), (self.best_x, self.best, self.stopped)
        (low, high), (best_x, best, stopped) = (tuple(tensor[at] for tensor in some) for some in rest)
        return Descent(self.x[at], low, high, own, best_x, best, stopped)


Advance = Callable[[Descent, Tensor, Tensor, int], None]
"""Moves ``x`` on, in place of the state: (state, objective (V,), gradient like x, evaluations before this one)."""


def descend(
    objective: Objective, state: Descent, advance: Advance, *, steps: int, flat: float | None
) -> tuple[Tensor, Tensor]:
    """Run an optimiser; see `Optimizer.minimise`.

    Args:
        objective: see there.
        state: at the start.
        advance: the optimiser's step.
        steps: evaluations beside that of the start.
        flat: a victim whose best objective fell by less than this share over `CHECK` evaluations has stopped; None never.
    """
    found_x, found = torch.empty_like(state.x), torch.empty_like(state.best)
    rows = torch.arange(len(found), device=found.device)
    mark = state.best
    for number in range(steps + 1):
        value, slope = objective(state.x)
        better = (value < state.best) & ~state.stopped
        state.best = torch.where(better, value, state.best)
        state.best_x = torch.where(along(better, state.x), state.x, state.best_x)
        if number == steps:
            break
        advance(state, value, slope, number)
        if (number + 1) % CHECK:
            continue
        evaluated(CHECK)
        if flat is not None:
            state.stopped = state.stopped | (mark - state.best < flat * mark.abs())
            mark = state.best
        stopped = int(state.stopped.sum())
        if 2 * stopped < len(rows):
            continue
        found_x[rows], found[rows] = state.best_x, state.best
        left = (~state.stopped).nonzero().squeeze(1)
        rows, mark = rows[left], mark[left]
        if stopped == len(state.stopped):
            break
        state, objective = state.take(left), objective.take(left)
    found_x[rows], found[rows] = state.best_x[: len(rows)], state.best[: len(rows)]
    return found_x, found


def along(per_victim: Tensor, like: Tensor) -> Tensor:
    """Return (V,) with as many further dimensions of 1 as ``like`` has."""
    return per_victim.view(-1, *[1] * (like.ndim - 1))
