"""Several local steps, replayed: the client's whole training is differentiated, with the learning rate it is known to use.

The client walks w_0 .. w_N, w_(k+1) = w_k - r g_k with g_k = grad_w L(w_k, x), and sends G = mean of the g_k. For a distance
D(G, T) with v = dD/dG, the chain rule along the path, run backwards from a_N = 0, is

    u_k = v / N - r a_(k+1),     a_k = a_(k+1) + grad_w < g_k, u_k >,     grad_x D = sum of grad_x < g_k, u_k >,

and < g_k, u_k > is the directional derivative of L at w_k along u_k. So as for one step nothing is differentiated twice, and
memory holds one step's graph and the path's weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from fedveil.attacks.engine import paths
from fedveil.attacks.engine.distances import Distance, cosine_distance
from fedveil.attacks.engine.objective import Problem
from fedveil.attacks.optimizers.descent import along
from fedveil.attacks.priors import Prior, penalty_and_slope
from fedveil.attacks.target.problem import Tensors
from fedveil.fl.optimizers import PLAIN_SGD, LocalOptimizer


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
        value, slope, _ = slopes(self.problem, self.path, self.distance, x)
        if self.priors:
            penalty, rise = penalty_and_slope(self.priors, x)
            value, slope = value + penalty, slope + rise
        return value, slope

    def take(self, at: Tensor) -> Unrolled:
        """Return the objective of the victims at these positions (n,)."""
        priors = tuple(prior.take(at) for prior in self.priors)
        return Unrolled(self.problem.take(at), self.path.take(at), self.distance, priors)


def slopes(problem: Problem, path: Path, distance: Distance, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the distance (V,) of what images (V, B, C, H, W) would have sent, its gradient by them, and by the labels.

    The last is shaped as the problem's labels where those are shares of the classes (V, B, K), and zero (V,) otherwise.
    """
    masks = problem.visible or {}
    names = tuple(problem.trained), tuple(problem.frozen), tuple(problem.target), tuple(masks)

    def compute(x: Tensor, rates: Tensor, labels: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rest = iter(tensors)
        trained, frozen, target, visible = ({name: next(rest) for name in some} for some in names)
        given = replace(
            problem, weights={**frozen, **trained}, target=target, labels=labels, visible=visible if masks else None
        )
        return _slopes(given, Path(path.steps, rates), distance, x)

    parts = (problem.trained, problem.frozen, problem.target, masks)
    inputs = [x, path.rates, problem.labels, *(tensor for part in parts for tensor in part.values())]
    name = ("unrolled", distance, path.steps, names, problem.own_weights, problem.model.defended)
    value, by_images, by_labels = paths.run(problem.model.module, name, compute, inputs)
    return value, by_images, by_labels


def _slopes(problem: Problem, path: Path, distance: Distance, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `slopes`; worked out anew."""
    places, sent = walk(problem, x, path)
    target, masks = problem.target, problem.visible
    if masks is not None:
        sent, target = ({n: t * masks[n] for n, t in one.items()} for one in (sent, target))
    value, direction = distance(sent, target)
    frozen = _spread(problem.frozen, problem, len(x))
    soft = problem.labels.is_floating_point()
    by_images, by_labels = torch.zeros_like(x), torch.zeros_like(problem.labels if soft else value)
    behind = {n: torch.zeros_like(v) for n, v in direction.items()}
    # The slope by the weights before the first step leads nowhere.
    for step, place in reversed(list(enumerate(places))):
        wanted = ("images", *["labels"] * soft, *["weights"] * (step > 0))
        back = vmap(
            grad(_directional, argnums=tuple(_ARGUMENTS[name] for name in wanted)),
            in_dims=(0, 0, 0, 0, 0, None),
            randomness="error",
        )
        pull = {n: v / path.steps - along(path.rates, v) * behind[n] for n, v in direction.items()}
        found = dict(zip(wanted, back(x, problem.labels, place, frozen, pull, problem), strict=True))
        by_images = by_images + found["images"]
        if soft:
            by_labels = by_labels + found["labels"]
        if step:
            behind = {n: b + found["weights"][n] for n, b in behind.items()}
    return value, by_images, by_labels


def walk(
    problem: Problem, x: Tensor, path: Path, optimizer: LocalOptimizer = PLAIN_SGD
) -> tuple[list[Tensors], Tensors]:
    """Return the weights (V, ...) before each step of clients that train on x (V, B, C, H, W), and their mean direction.

    That of plain SGD is the mean gradient, and what is differentiated here.
    """
    trained, frozen = (_spread(some, problem, len(x)) for some in (problem.trained, problem.frozen))
    gradient_of = vmap(grad(problem.loss), in_dims=(0, 0, 0, 0), randomness="error")
    turn = optimizer.begin()
    places: list[Tensors] = []
    total: Tensors = {}
    for _ in range(path.steps):
        places.append(trained)
        gradient = gradient_of(trained, frozen, x, problem.labels)
        found = turn(list(gradient.values()), [trained[n] for n in gradient])
        step = dict(zip(gradient, found, strict=True))
        total = {n: total[n] + d if total else d for n, d in step.items()}
        trained = {n: w - along(path.rates, w) * step[n] for n, w in trained.items()}
    return places, {n: t / path.steps for n, t in total.items()}


def replayed(
    problem: Problem, x: Tensor, *, steps: int, rates: Tensor, optimizer: LocalOptimizer = PLAIN_SGD
) -> Tensors:
    """Return what clients would send that train on given images: the mean direction of their steps, (V, ...) by name.

    Args:
        problem: with the weights that the server sent.
        x: (V, B, C, H, W).
        steps: of the optimiser, each on all images of a victim.
        rates: (V,) learning rates.
        optimizer: of the clients.
    """
    return walk(problem, x, Path(steps, rates), optimizer)[1]


_ARGUMENTS = {"images": 0, "labels": 1, "weights": 2}
"""Places among the arguments of `_directional`."""


def _directional(x: Tensor, y: Tensor, trained: Tensors, frozen: Tensors, pull: Tensors, problem: Problem) -> Tensor:
    derivative: Tensor = jvp(lambda w: problem.loss(w, frozen, x, y), (trained,), (pull,))[1]
    return derivative


def _spread(weights: Tensors, problem: Problem, count: int) -> Tensors:
    """Give each victim weights of its own."""
    return weights if problem.own_weights else {n: w.expand(count, *w.shape) for n, w in weights.items()}
