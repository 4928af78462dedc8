"""L-BFGS in a box, with a line search for each victim."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedveil.attacks.optimizers.descent import Descent, Objective, descend


@dataclass(frozen=True)
class LBFGS:
    """L-BFGS in the box (Nocedal and Wright 2006, algorithm 7.4; bounds as in Bertsekas 1982), a line search per victim.

    Variables at a bound that the gradient pushes outwards stand still; the curvature is that of the others. Each evaluation
    is one trial of every victim's own line search: bisection between a step that is too long (objective not low enough)
    and one that is too short (slope still steep), the weak Wolfe conditions of Lewis and Overton (2013). A victim whose
    search fails starts again along its gradient; one for which that fails too has converged, and stops.

    Attributes:
        steps: evaluations of objective and gradient beside the first one.
        history: changes of x and of the gradient that it keeps.
        first: root mean square change of the first trial, in units of x.
        flat: a victim whose best objective falls by less than this share over 50 evaluations stops; None never.
    """

    steps: int
    history: int = 50
    first: float = 0.1
    flat: float | None = None

    @property
    def image_copies(self) -> int:
        """How many times over it keeps what is as large as x, when it keeps most."""
        return 7 * self.history + 12

    def minimise(
        self, objective: Objective, start: Tensor, *, low: float | Tensor = 0.0, high: float | Tensor = 1.0
    ) -> tuple[Tensor, Tensor]:
        """See `Optimizer`."""
        state = Descent.at(start, low, high)
        return descend(objective, state, self._advance, steps=self.steps, flat=self.flat)

    def _advance(self, state: Descent, value: Tensor, slope: Tensor, number: int) -> None:
        shape, slope = state.x.shape, slope.flatten(1)
        trial, low, high = (tensor.flatten(1) for tensor in (state.x, state.low, state.high))
        if number == 0:
            state.own = self._begin(trial, value, slope, low, high)
        else:
            self._judge(state, trial, value, slope, low, high)
        own = state.own
        state.x = (own["x"] + own["length"][:, None] * own["direction"]).clamp(low, high).view(shape)

    def _begin(self, x: Tensor, value: Tensor, slope: Tensor, low: Tensor, high: Tensor) -> dict[str, Tensor]:
        moves = x.new_zeros((len(x), self.history, x.shape[1]))
        turns = torch.zeros_like(moves)
        return {
            "x": x,
            "value": value,
            "slope": slope,
            "moves": moves,
            "turns": turns,
            "direction": self._direction(x, slope, moves, turns, low, high),
            "length": torch.ones_like(value),
            "short": torch.zeros_like(value),
            "long": torch.full_like(value, torch.inf),
            "trials": torch.zeros_like(value),
            "fresh": torch.ones_like(value, dtype=torch.bool),
        }

    def _judge(
        self, state: Descent, trial: Tensor, trial_value: Tensor, trial_slope: Tensor, low: Tensor, high: Tensor
    ) -> None:
        """Take a trial of the line search, or choose the next one's length."""
        own = state.own
        x, value, slope, length, fresh = (own[name] for name in ("x", "value", "slope", "length", "fresh"))
        move, turn = trial - x, trial_slope - slope
        along, along_now = (slope * move).sum(1), (trial_slope * move).sum(1)
        trials = own["trials"] + 1
        last = trials >= _TRIALS
        low_enough = trial_value <= value + _ENOUGH * along
        done = low_enough & ((along_now >= _STEEP * along) | last) & ~state.stopped
        failed = ~low_enough & last
        state.stopped = state.stopped | (failed & fresh)
        # A search goes on between the bounds, from too short a step by doubling it, from too long a first one
        # along a parabola.
        short = torch.where(low_enough, length, own["short"])
        long = torch.where(low_enough, own["long"], length)
        parabola = length * (-along / (2 * (trial_value - value - along))).nan_to_num(0.1).clamp(0.1, 0.5)
        between = torch.where(short > 0, (short + long) / 2, parabola)
        length = torch.where(long.isinf(), 2 * short, between)

        kept = done & ((move * turn).sum(1) > 0)
        moves, turns = own["moves"], own["turns"]
        moves = torch.where(kept[:, None, None], torch.cat([moves[:, 1:], move[:, None]], 1), moves)
        turns = torch.where(kept[:, None, None], torch.cat([turns[:, 1:], turn[:, None]], 1), turns)
        moves = torch.where(failed[:, None, None], 0, moves)
        x, value = torch.where(done[:, None], trial, x), torch.where(done, trial_value, value)
        slope = torch.where(done[:, None], trial_slope, slope)
        anew = done | failed
        direction = self._direction(x, slope, moves, turns, low, high)
        own |= {"x": x, "value": value, "slope": slope, "moves": moves, "turns": turns}
        own["fresh"] = (fresh & ~kept) | failed
        own["direction"] = torch.where(anew[:, None], direction, own["direction"])
        own["length"], own["short"] = torch.where(anew, 1, length), torch.where(anew, 0, short)
        own["long"], own["trials"] = torch.where(anew, torch.inf, long), torch.where(anew, 0, trials)

    def _direction(self, x: Tensor, slope: Tensor, moves: Tensor, turns: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The two-loop recursion over the variables that are free to move; empty places of the history do nothing."""
        free = ~(((x <= low) & (slope > 0)) | ((x >= high) & (slope < 0)))
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
