"""Optimisers over images in the box [0, 1]: all victims advance together, each by its own objective alone.

Nothing is read back from the device inside the loops, so that a GPU never waits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

StepFunction = Callable[[Tensor], tuple[Tensor, Tensor]]
"""x (V, B, C, H, W) -> (objective (V,), its gradient shaped as x)."""


class Optimizer(Protocol):
    """Settings of an optimiser."""

    @property
    def steps(self) -> int:
        """Evaluations of objective and gradient beside that of the start."""

    def minimise(self, step: StepFunction, start: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best iterate of each victim by its own objective.

        Args:
            step: objective and gradient.
            start: (V, B, C, H, W).

        Returns:
            (V, B, C, H, W) in [0, 1], and the objective (V,) *of those images*.
        """


@dataclass(frozen=True)
class Adam:
    """Adam, whose rate falls along half a cosine, and which may see the gradient's signs alone.

    Inverting Gradients (Geiping et al. 2020) divides the rate by ten at 3/8, 5/8 and 7/8 of its thousands of steps; of a
    few hundred steps that leaves most too small to matter (docs/method.md).

    Attributes:
        steps: iterations.
        learning_rate: at the start, in units of the [0, 1] pixel range.
        signed: each pixel's gradient is replaced by its sign.
    """

    steps: int
    learning_rate: float
    signed: bool = True

    def minimise(self, step: StepFunction, start: Tensor) -> tuple[Tensor, Tensor]:
        """See `Optimizer`."""
        # A copy: Adam moves x in place, and the caller's start stays.
        x = start.clamp(0, 1)
        optimizer = torch.optim.Adam([x], lr=self.learning_rate)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, self.steps))
        best_x, best = x.clone(), torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        for number in range(self.steps + 1):
            objective, slope = step(x)
            better = objective < best
            best = torch.where(better, objective, best)
            best_x = torch.where(better.view(-1, *[1] * (x.ndim - 1)), x, best_x)
            if number == self.steps:
                break
            x.grad = slope.sign() if self.signed else slope
            optimizer.step()
            rates.step()
            x.clamp_(0, 1)
        return best_x, best


@dataclass(frozen=True)
class LBFGS:
    """L-BFGS in the box (Nocedal and Wright 2006, algorithm 7.4; bounds as in Bertsekas 1982), a line search per victim.

    Pixels at a bound that the gradient pushes outwards stand still; the curvature is that of the others. Each evaluation
    is one trial of every victim's own line search: bisection between a step that is too long (objective not low enough)
    and one that is too short (slope still steep), the weak Wolfe conditions of Lewis and Overton (2013). A victim whose
    search fails starts again along its gradient; one for which that fails too has converged, and is frozen.

    Attributes:
        steps: evaluations of objective and gradient beside the first one.
        history: changes of x and of the gradient that it keeps.
        first: root mean square change of the first trial, in pixel units.
    """

    steps: int
    history: int = 50
    first: float = 0.1

    def minimise(self, step: StepFunction, start: Tensor) -> tuple[Tensor, Tensor]:
        """See `Optimizer`."""

        def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
            value, slope = step(x.view_as(start))
            return value, slope.flatten(1)

        x = start.clamp(0, 1).flatten(1)
        value, slope = evaluate(x)
        best_x, best = x, torch.where(value.isnan(), torch.inf, value)
        moves = x.new_zeros((len(x), self.history, x.shape[1]))
        turns = torch.zeros_like(moves)
        direction = self._direction(x, slope, moves, turns)
        length, low, high = torch.ones_like(value), torch.zeros_like(value), torch.full_like(value, torch.inf)
        trials = torch.zeros_like(value)
        fresh, frozen = torch.ones_like(value, dtype=torch.bool), torch.zeros_like(value, dtype=torch.bool)
        for _ in range(self.steps):
            trial = (x + length[:, None] * direction).clamp(0, 1)
            trial_value, trial_slope = evaluate(trial)
            better = trial_value < best
            best, best_x = torch.where(better, trial_value, best), torch.where(better[:, None], trial, best_x)
            move, turn = trial - x, trial_slope - slope
            along, along_now = (slope * move).sum(1), (trial_slope * move).sum(1)
            trials = trials + 1
            last = trials >= _TRIALS
            low_enough = trial_value <= value + _ENOUGH * along
            done = low_enough & ((along_now >= _STEEP * along) | last) & ~frozen
            failed = ~low_enough & last
            frozen = frozen | (failed & fresh)
            # A search goes on between the bounds, from too short a step by doubling it, from too long a first one
            # along a parabola.
            low = torch.where(low_enough, length, low)
            high = torch.where(low_enough, high, length)
            parabola = length * (-along / (2 * (trial_value - value - along))).nan_to_num(0.1).clamp(0.1, 0.5)
            between = torch.where(low > 0, (low + high) / 2, parabola)
            length = torch.where(high.isinf(), 2 * low, between)

            kept = done & ((move * turn).sum(1) > 0)
            moves = torch.where(kept[:, None, None], torch.cat([moves[:, 1:], move[:, None]], 1), moves)
            turns = torch.where(kept[:, None, None], torch.cat([turns[:, 1:], turn[:, None]], 1), turns)
            moves = torch.where(failed[:, None, None], 0, moves)
            fresh = (fresh & ~kept) | failed
            x, value = torch.where(done[:, None], trial, x), torch.where(done, trial_value, value)
            slope = torch.where(done[:, None], trial_slope, slope)
            anew = done | failed
            direction = torch.where(anew[:, None], self._direction(x, slope, moves, turns), direction)
            length, low = torch.where(anew, 1, length), torch.where(anew, 0, low)
            high, trials = torch.where(anew, torch.inf, high), torch.where(anew, 0, trials)
        return best_x.view_as(start), best

    def _direction(self, x: Tensor, slope: Tensor, moves: Tensor, turns: Tensor) -> Tensor:
        """The two-loop recursion over the pixels that are free to move; empty places of the history do nothing."""
        free = ~(((x <= 0) & (slope > 0)) | ((x >= 1) & (slope < 0)))
        moves, turns = moves * free[:, None], turns * free[:, None]
        both, squared = (moves * turns).sum(2), turns.square().sum(2)
        sound = both > _CURVED * (moves.square().sum(2) * squared).sqrt()
        inverse = torch.where(sound, 1 / both, 0)
        along = slope * free
        # Scaled by the newest sound pair (N. & W., eq. 7.20); without any, to the first trial's size.
        scale = self.first / along.square().mean(1).sqrt().clamp_min(torch.finfo(x.dtype).tiny)
        weights = []
        for place in range(self.history):
            scale = torch.where(sound[:, place], both[:, place] / squared[:, place], scale)
        for place in reversed(range(self.history)):
            weight = inverse[:, place] * (moves[:, place] * along).sum(1)
            along = along - weight[:, None] * turns[:, place]
            weights.append(weight)
        along = scale[:, None] * along
        for place, weight in enumerate(reversed(weights)):
            back = inverse[:, place] * (turns[:, place] * along).sum(1)
            along = along + (weight - back)[:, None] * moves[:, place]
        return -along


_TRIALS = 12
"""Trials of one line search."""
_ENOUGH, _STEEP = 1e-4, 0.9
"""Shares of the first slope: by which the objective has to fall at least, and that may be left at most."""
_CURVED = 1e-8
"""Least cosine between a change of x and one of the gradient."""
