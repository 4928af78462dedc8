"""Gradient matching for many victims at once, without differentiating twice.

For any matching loss D(g, T) between the dummy gradient g = grad_w L(x) and the target T,

    grad_x D = grad_x < grad_w L(x), v >,   v = dD/dg held fixed,

and < grad_w L(x), v > is the directional derivative of L along v. So one step is a plain backward pass for g, the closed
form of v, and the forward derivative of a backward pass (`slopes`); `torch.func.vmap` runs it for all victims and restarts
together, and what both passes share is computed once (`paths`). `oracle` is the slow textbook path, one victim at a time
through ``create_graph=True``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedveil.attacks.engine.distances import Distance, cosine_distance
from fedveil.attacks.engine.memory import free_memory
from fedveil.attacks.engine.step import Step, plain, size_of
from fedveil.attacks.priors import Prior, penalty_and_slope
from fedveil.attacks.target.problem import Problem, Tensors

__all__ = ["Matching", "Problem", "objective", "oracle", "victims_that_fit"]


@dataclass(frozen=True, eq=False)
class Matching:
    """How far the gradients of images are from the observed ones, with what the priors add; see `objective`."""

    problem: Problem
    distance: Distance
    priors: tuple[Prior, ...]

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the objective (V,) of images (V, B, C, H, W), and its gradient shaped as they are."""
        if len(self._turns) == 1:
            value, slope = self._turns[0][1](x)
        else:
            value, slope = map(torch.cat, zip(*(step(x[at]) for at, step in self._turns), strict=True))
        if others := [prior for prior in self.priors if not plain(prior)]:
            penalty, rise = penalty_and_slope(others, x)
            value, slope = value + penalty, slope + rise
        return value, slope

    def take(self, at: Tensor) -> Matching:
        """Return the objective of some victims: ``at`` (n,) are their numbers, int64."""
        return Matching(self.problem.take(at), self.distance, tuple(prior.take(at) for prior in self.priors))

    @cached_property
    def _turns(self) -> list[tuple[slice, Step]]:
        """Victims take turns, as many at once as `at_once` says."""
        count = len(self.problem.labels)
        most = count if count <= FEW else at_once(self.problem, self.distance)
        spans = [slice(start, start + most) for start in range(0, count, most)]
        priors = tuple(prior for prior in self.priors if plain(prior))
        return [(span, Step(self.problem.take(span), self.distance, priors)) for span in spans]


def objective(problem: Problem, *, distance: Distance = cosine_distance, priors: Sequence[Prior] = ()) -> Matching:
    """Return x -> (objective (V,), its gradient shaped as x): the distance to the observed gradients and the priors' sum.

    Args:
        problem: what to match.
        distance: between gradients.
        priors: penalties of the images, with their weights.
    """
    return Matching(problem, distance, tuple(priors))


FEW = 4
"""So many victims always fit."""
LARGEST = 10 * 2**20
"""Bytes of a step's largest tensor, per thread of a CPU: beyond, caches overflow, and memory goes back to the system."""
SHARE = 0.5
"""Of the memory that is there, so much may be used."""


def at_once(problem: Problem, distance: Distance = cosine_distance) -> int:
    """Return how many victims one evaluation takes on together: a power of two, of the same bits whatever else runs."""
    size, device = size_of(problem, distance), problem.labels.device
    if device.type == "cuda":
        fit = SHARE * torch.cuda.get_device_properties(device).total_memory / size.peak
    else:
        fit = LARGEST * torch.get_num_threads() / size.largest
    most: int = 1 << max(0, int(fit).bit_length() - 1)
    return most


def victims_that_fit(problem: Problem, optimizer_bytes_per_victim: int, distance: Distance = cosine_distance) -> int:
    """Return how many victims can be optimised together within half of the memory that is free.

    Where there is room, a multiple of `at_once`: then results are the same for whatever room there is.

    Args:
        problem: with one victim or more of that kind.
        optimizer_bytes_per_victim: what the optimiser keeps for each.
        distance: between gradients.

    Returns:
        At least 1.
    """
    free, together = free_memory(problem.labels.device), at_once(problem, distance)
    if free is None:
        return together
    one = problem.take(slice(0, 1))
    tensors = [one.labels, *one.target.values(), *(one.visible or {}).values()]
    tensors += one.weights.values() if one.own_weights else []
    # Steps keep what they make of those, too.
    kept = 2 * sum(t.nbytes for t in tensors) + optimizer_bytes_per_victim
    # Above all a step of those who are at it together.
    fit = int((SHARE * free - together * size_of(problem, distance).peak) / max(1, kept))
    if fit >= together:
        return fit - fit % together
    return max(1, int(SHARE * free / (kept + size_of(problem, distance).peak)))


def oracle(
    problem: Problem, *, distance: Distance = cosine_distance, priors: Sequence[Prior] = ()
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The slow path of `objective`: victims one by one, differentiated twice."""

    def one(index: int, x: Tensor) -> tuple[Tensor, Tensor]:
        def own(weights: Tensors) -> Tensors:
            return {n: (w[index] if problem.own_weights else w).detach() for n, w in weights.items()}

        x = x.detach().requires_grad_(True)
        weights = {name: weight.requires_grad_(True) for name, weight in own(problem.trained).items()}
        loss = problem.loss(weights, own(problem.frozen), x, problem.labels[index])
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True, materialize_grads=True)
        masks = problem.visible or {}
        mine = {n: (g * masks[n][index] if n in masks else g)[None] for n, g in zip(weights, gradients, strict=True)}
        theirs = {n: (t[index] * masks[n][index] if n in masks else t[index])[None] for n, t in problem.target.items()}
        here = torch.tensor([index], device=x.device)
        penalties = [prior.take(here)(x[None]) for prior in priors]
        value = sum(penalties, start=distance(mine, theirs)[0]).squeeze(0)
        return value.detach(), torch.autograd.grad(value, x)[0]

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        pairs = [one(i, x[i]) for i in range(len(x))]
        return torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs])

    return step
