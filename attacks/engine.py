"""Gradient matching for many victims at once, without differentiating twice.

For any matching loss D(g, T) between the dummy gradient g = grad_w L(x) and the target T,

    grad_x D = grad_x < grad_w L(x), v >,   v = dD/dg held fixed,

and < grad_w L(x), v > is the directional derivative of L along v. So one step is a plain backward pass for g, the closed
form of v, and one reverse pass over one forward-mode derivative; `torch.func.vmap` runs it for all victims and restarts
together. `oracle` is the slow textbook path, one victim at a time through ``create_graph=True``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from fedveil.attacks.matching import Distance, Tensors, cosine_distance
from fedveil.attacks.priors import Prior, penalty_and_slope
from fedveil.attacks.target import TargetModel


@dataclass(frozen=True)
class Problem:
    """V victims (or victims times restarts) to match at once.

    Attributes:
        model: the classifier, on the device.
        weights: parameters and buffers by name, (V, ...) each if ``own_weights``, otherwise shared by all victims.
        target: observed gradient by name, (V, ...); it may lack parameters that the client froze.
        labels: (V, B) class numbers, or (V, B, K) shares of each class.
        own_weights: each victim has weights of its own.
        visible: masks by name, (V, ...) or broadcastable, of the entries to match; None for all.
        sized: the target is a gradient at these weights in length too; what several steps sent is so in direction at most.
    """

    model: TargetModel
    weights: Tensors
    target: Tensors
    labels: Tensor
    own_weights: bool = False
    visible: Tensors | None = None
    sized: bool = True

    @property
    def trained(self) -> Tensors:
        """The weights whose gradient is matched."""
        return {name: self.weights[name] for name in self.target}

    @property
    def frozen(self) -> Tensors:
        """All others."""
        return {name: weight for name, weight in self.weights.items() if name not in self.target}

    def loss(self, trained: Tensors, frozen: Tensors, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of one victim: (B, C, H, W), (B,) or (B, K) to a scalar."""
        logits = self.model.logits({**frozen, **trained}, x)
        if not y.is_floating_point():
            y = (y[:, None] == torch.arange(logits.shape[1], device=y.device)).to(logits)
        # Not by log_softmax, whose backward has a fused kernel that its own derivative does not share.
        return (y * (torch.logsumexp(logits, 1, keepdim=True) - logits)).sum(1).mean()

    def take(self, at: Tensor) -> Problem:
        """Return the problem of some victims: ``at`` (n,) are their numbers, int64."""
        visible = self.visible and {n: m[at] if len(m) == len(self.labels) else m for n, m in self.visible.items()}
        return replace(
            self,
            weights={n: w[at] for n, w in self.weights.items()} if self.own_weights else self.weights,
            target={n: t[at] for n, t in self.target.items()},
            labels=self.labels[at],
            visible=visible,
        )


def slope_along(problem: Problem) -> Callable[[Tensor, Tensors], Tensor]:
    """Return (x (V, B, C, H, W), v (V, ...) by name) -> the gradient by x of < grad_w L(x), v >, shaped as x."""
    weight_dims = 0 if problem.own_weights else None

    def directional(x: Tensor, trained: Tensors, frozen: Tensors, y: Tensor, direction: Tensors) -> Tensor:
        derivative: Tensor = jvp(lambda w: problem.loss(w, frozen, x, y), (trained,), (direction,))[1]
        return derivative

    slope_of = vmap(grad(directional), in_dims=(0, weight_dims, weight_dims, 0, 0), randomness="error")
    trained, frozen = problem.trained, problem.frozen
    return lambda x, direction: slope_of(x, trained, frozen, problem.labels, direction)


@dataclass(frozen=True, eq=False)
class Matching:
    """How far the gradients of images are from the observed ones, with what the priors add; see `objective`."""

    problem: Problem
    distance: Distance
    priors: tuple[Prior, ...]

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the objective (V,) of images (V, B, C, H, W), and its gradient shaped as they are."""
        problem = self.problem
        weight_dims = 0 if problem.own_weights else None
        gradient_of = vmap(grad(problem.loss), in_dims=(weight_dims, weight_dims, 0, 0), randomness="error")
        gradient, target = gradient_of(problem.trained, problem.frozen, x, problem.labels), problem.target
        if problem.visible is not None:
            gradient, target = _masked(gradient, problem.visible), _masked(target, problem.visible)
        # The slope lives on the visible entries alone: where g and T are both 0, so is dD/dg.
        value, direction = self.distance(gradient, target)
        slope = slope_along(problem)(x, direction)
        if self.priors:
            penalty, rise = penalty_and_slope(self.priors, x)
            value, slope = value + penalty, slope + rise
        return value, slope

    def take(self, at: Tensor) -> Matching:
        """Return the objective of some victims: ``at`` (n,) are their numbers, int64."""
        return Matching(self.problem.take(at), self.distance, tuple(prior.take(at) for prior in self.priors))


def objective(problem: Problem, *, distance: Distance = cosine_distance, priors: Sequence[Prior] = ()) -> Matching:
    """Return x -> (objective (V,), its gradient shaped as x): the distance to the observed gradients and the priors' sum.

    Args:
        problem: what to match.
        distance: between gradients.
        priors: penalties of the images, with their weights.
    """
    return Matching(problem, distance, tuple(priors))


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


def _masked(tensors: Tensors, masks: Tensors) -> Tensors:
    return {name: tensor * masks[name] for name, tensor in tensors.items()}
