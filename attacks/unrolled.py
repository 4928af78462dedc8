"""Several local steps, replayed: the client's whole training is differentiated, with the learning rate it is known to use.

The client walks w_0 .. w_N, w_(k+1) = w_k - r g_k with g_k = grad_w L(w_k, x), and sends G = mean of the g_k. For a distance
D(G, T) with v = dD/dG, the chain rule along the path, run backwards from a_N = 0, is

    u_k = v / N - r a_(k+1),     a_k = a_(k+1) + grad_w < g_k, u_k >,     grad_x D = sum of grad_x < g_k, u_k >,

and < g_k, u_k > is the directional derivative of L at w_k along u_k. So as for one step nothing is differentiated twice, and
memory holds one step's graph and the path's weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from fedveil.attacks.engine import Problem
from fedveil.attacks.matching import Distance, Tensors, cosine_distance
from fedveil.attacks.optimizers.descent import along
from fedveil.attacks.priors import Prior, penalty_and_slope


@dataclass(frozen=True, eq=False)
class Path:
    """How clients trained.

    Attributes:
        steps: of gradient descent, each on all images of a victim.
        rates: (V,) learning rates.
    """

    steps: int
    rates: Tensor

    def take(self, at: Tensor) -> Path:
        """Return those of the clients at these positions (n,)."""
        return Path(self.steps, self.rates[at])


@dataclass(frozen=True, eq=False)
class Unrolled:
    """How far what clients would send, had they trained on given images, is from what they sent; an `Objective`.

    Attributes:
        problem: with the weights that the server sent.
        path: how the clients trained from there.
        distance: between mean gradients along the path.
        priors: of the images, with their weights.
    """

    problem: Problem
    path: Path
    distance: Distance = cosine_distance
    priors: tuple[Prior, ...] = ()

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the objective (V,) of images (V, B, C, H, W), and its gradient shaped as they are."""
        problem, path = self.problem, self.path
        places, sent = walk(problem, x, path)
        target, masks = problem.target, problem.visible
        if masks is not None:
            sent, target = ({n: t * masks[n] for n, t in one.items()} for one in (sent, target))
        value, direction = self.distance(sent, target)
        slope = torch.zeros_like(x)
        frozen = _spread(problem.frozen, problem, len(x))
        behind = {n: torch.zeros_like(v) for n, v in direction.items()}
        back = vmap(grad(_directional, argnums=(1, 2)), in_dims=(None, 0, 0, 0, 0, 0), randomness="error")
        for place in reversed(places):
            pull = {n: v / path.steps - along(path.rates, v) * behind[n] for n, v in direction.items()}
            by_weights, by_images = back(problem, place, x, frozen, problem.labels, pull)
            behind = {n: b + by_weights[n] for n, b in behind.items()}
            slope = slope + by_images
        if self.priors:
            penalty, rise = penalty_and_slope(self.priors, x)
            value, slope = value + penalty, slope + rise
        return value, slope

    def take(self, at: Tensor) -> Unrolled:
        """Return the objective of the victims at these positions (n,)."""
        priors = tuple(prior.take(at) for prior in self.priors)
        return Unrolled(self.problem.take(at), self.path.take(at), self.distance, priors)


def walk(problem: Problem, x: Tensor, path: Path) -> tuple[list[Tensors], Tensors]:
    """Return the weights (V, ...) before each step of clients that train on x (V, B, C, H, W), and their mean gradient."""
    trained, frozen = (_spread(some, problem, len(x)) for some in (problem.trained, problem.frozen))
    gradient_of = vmap(grad(problem.loss), in_dims=(0, 0, 0, 0), randomness="error")
    places: list[Tensors] = []
    total: Tensors = {}
    for _ in range(path.steps):
        places.append(trained)
        gradient = gradient_of(trained, frozen, x, problem.labels)
        total = {n: total[n] + g if total else g for n, g in gradient.items()}
        trained = {n: w - along(path.rates, w) * gradient[n] for n, w in trained.items()}
    return places, {n: t / path.steps for n, t in total.items()}


def replayed(problem: Problem, x: Tensor, *, steps: int, rates: Tensor) -> Tensors:
    """Return what clients would send that train on given images: the mean gradient along their paths, (V, ...) by name.

    Args:
        problem: with the weights that the server sent.
        x: (V, B, C, H, W).
        steps: of gradient descent, each on all images of a victim.
        rates: (V,) learning rates.
    """
    return walk(problem, x, Path(steps, rates))[1]


def _directional(problem: Problem, trained: Tensors, x: Tensor, frozen: Tensors, y: Tensor, pull: Tensors) -> Tensor:
    derivative: Tensor = jvp(lambda w: problem.loss(w, frozen, x, y), (trained,), (pull,))[1]
    return derivative


def _spread(weights: Tensors, problem: Problem, count: int) -> Tensors:
    """Give each victim weights of its own."""
    return weights if problem.own_weights else {n: w.expand(count, *w.shape) for n, w in weights.items()}
