"""Gradient matching for many victims at once, without differentiating twice.

For any matching loss D(g, T) between the dummy gradient g = grad_w L(x) and the target T,

    grad_x D = grad_x < grad_w L(x), v >,   v = dD/dg held fixed,

and < grad_w L(x), v > is the directional derivative of L along v. So one step is a plain backward pass for g, the closed
form of v, and one reverse pass over one forward-mode derivative; `torch.func.vmap` runs it for all victims and restarts
together. `oracle` is the slow textbook path, one victim at a time through ``create_graph=True``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.nn import functional as F

from fedveil.attacks.target import TargetModel

Tensors = dict[str, Tensor]


def flat_dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """Inner product over all tensors, per victim: dicts of (V, ...) to (V,)."""
    total: Tensor | None = None
    for name, left in a.items():
        part = (left * b[name]).flatten(1).sum(dim=1)
        total = part if total is None else total + part
    if total is None:
        raise ValueError("no tensors")
    return total


def cosine_distance(gradient: Tensors, target: Tensors) -> tuple[Tensor, Tensors]:
    """D = 1 - <g, T> / (|g| |T|) per victim over all layers as one vector (Geiping et al. 2020, eq. 4), and dD/dg.

    Args:
        gradient: (V, ...) by parameter name.
        target: likewise.

    Returns:
        (V,) distances, and dD/dg shaped as ``gradient``.
    """
    gg, gt, tt = flat_dot(gradient, gradient), flat_dot(gradient, target), flat_dot(target, target)
    g_norm, t_norm = gg.clamp_min(1e-24).sqrt(), tt.clamp_min(1e-24).sqrt()
    cosine = gt / (g_norm * t_norm)
    along_t, along_g = -1 / (g_norm * t_norm), cosine / g_norm.square()

    def spread(factor: Tensor, like: Tensor) -> Tensor:
        return factor.view(-1, *[1] * (like.ndim - 1))

    slope = {n: spread(along_t, g) * target[n] + spread(along_g, g) * g for n, g in gradient.items()}
    return 1 - cosine, slope


def total_variation(x: Tensor) -> Tensor:
    """Anisotropic total variation, mean |dx| + mean |dy| per image batch: (..., H, W) to a scalar."""
    return x.diff(dim=-1).abs().mean() + x.diff(dim=-2).abs().mean()


@dataclass(frozen=True)
class Schedule:
    """How long and how fast signed Adam runs.

    The rate falls along half a cosine. Inverting Gradients (Geiping et al. 2020) divides it by ten at 3/8, 5/8 and 7/8
    of its thousands of steps; of a few hundred steps that leaves most too small to matter (docs/method.md).

    Attributes:
        steps: iterations.
        learning_rate: at the start, in units of the [0, 1] pixel range.
    """

    steps: int
    learning_rate: float


@dataclass(frozen=True)
class Problem:
    """V victims (or victims times restarts) to match at once.

    Attributes:
        model: the classifier, on the device.
        weights: parameters and buffers by name, (V, ...) each if ``own_weights``, otherwise shared by all victims.
        target: observed gradient by name, (V, ...); it may lack parameters that the client froze.
        labels: (V, B).
        own_weights: each victim has weights of its own.
        visible: masks by name, (V, ...) or broadcastable, of the entries to match; None for all.
    """

    model: TargetModel
    weights: Tensors
    target: Tensors
    labels: Tensor
    own_weights: bool = False
    visible: Tensors | None = None

    @property
    def trained(self) -> Tensors:
        """The weights whose gradient is matched."""
        return {name: self.weights[name] for name in self.target}

    @property
    def frozen(self) -> Tensors:
        """All others."""
        return {name: weight for name, weight in self.weights.items() if name not in self.target}

    def loss(self, trained: Tensors, frozen: Tensors, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of one victim: (B, C, H, W), (B,) to a scalar."""
        return F.cross_entropy(self.model.logits({**frozen, **trained}, x), y)


StepFunction = Callable[[Tensor], tuple[Tensor, Tensor]]


def slope_along(problem: Problem, *, tv: float) -> Callable[[Tensor, Tensors], Tensor]:
    """Return (x (V, B, C, H, W), v (V, ...) by name) -> the gradient by x of < grad_w L(x), v > + tv * TV, shaped as x."""
    weight_dims = 0 if problem.own_weights else None

    def directional(x: Tensor, trained: Tensors, frozen: Tensors, y: Tensor, direction: Tensors) -> Tensor:
        derivative: Tensor = jvp(lambda w: problem.loss(w, frozen, x, y), (trained,), (direction,))[1]
        return derivative + tv * total_variation(x)

    slope_of = vmap(grad(directional), in_dims=(0, weight_dims, weight_dims, 0, 0), randomness="error")
    trained, frozen = problem.trained, problem.frozen
    return lambda x, direction: slope_of(x, trained, frozen, problem.labels, direction)


def distance_and_slope(problem: Problem, *, tv: float) -> StepFunction:
    """Return x (V, B, C, H, W) -> (objective (V,), its gradient shaped as x); objective = cosine distance + tv * TV."""
    weight_dims = 0 if problem.own_weights else None
    gradient_of = vmap(grad(problem.loss), in_dims=(weight_dims, weight_dims, 0, 0), randomness="error")
    slope_of = slope_along(problem, tv=tv)
    trained, frozen = problem.trained, problem.frozen
    target = problem.target if problem.visible is None else _masked(problem.target, problem.visible)

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        gradient = gradient_of(trained, frozen, x, problem.labels)
        if problem.visible is not None:
            gradient = _masked(gradient, problem.visible)
        # The slope lives on the visible entries alone: it is a combination of masked g and masked T.
        distance, direction = cosine_distance(gradient, target)
        return distance + tv * vmap(total_variation)(x), slope_of(x, direction)

    return step


def oracle(problem: Problem, *, tv: float) -> StepFunction:
    """The slow path of `distance_and_slope`: victims one by one, differentiated twice."""

    def one(index: int, x: Tensor) -> tuple[Tensor, Tensor]:
        def own(weights: Tensors) -> Tensors:
            return {n: (w[index] if problem.own_weights else w).detach() for n, w in weights.items()}

        x = x.detach().requires_grad_(True)
        weights = {name: weight.requires_grad_(True) for name, weight in own(problem.trained).items()}
        loss = problem.loss(weights, own(problem.frozen), x, problem.labels[index])
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True, materialize_grads=True)
        masks = problem.visible or {}
        mine = [g * masks[n][index] if n in masks else g for n, g in zip(weights, gradients, strict=True)]
        theirs = [t[index] * masks[n][index] if n in masks else t[index] for n, t in problem.target.items()]
        g = torch.cat([part.flatten() for part in mine])
        t = torch.cat([part.flatten() for part in theirs])
        objective = 1 - F.cosine_similarity(g, t, dim=0, eps=1e-24) + tv * total_variation(x)
        return objective.detach(), torch.autograd.grad(objective, x)[0]

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        pairs = [one(i, x[i]) for i in range(len(x))]
        return torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs])

    return step


def _masked(tensors: Tensors, masks: Tensors) -> Tensors:
    return {name: tensor * masks[name] for name, tensor in tensors.items()}


def minimise(step: StepFunction, start: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Run signed Adam inside the box [0, 1] and return the best iterate of each victim by its own objective.

    Args:
        step: objective and gradient.
        start: (V, B, C, H, W).
        schedule: how long and how fast.

    Returns:
        (V, B, C, H, W) in [0, 1], and the objective (V,) *of those images*.
    """
    # A copy: Adam moves x in place, and the caller's start stays.
    x = start.clamp(0, 1)
    optimizer = torch.optim.Adam([x], lr=schedule.learning_rate)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, schedule.steps))
    best_x, best = x.clone(), torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
    for number in range(schedule.steps + 1):
        objective, slope = step(x)
        better = objective < best
        best = torch.where(better, objective, best)
        best_x = torch.where(better.view(-1, *[1] * (x.ndim - 1)), x, best_x)
        if number == schedule.steps:
            break
        x.grad = slope.sign()
        optimizer.step()
        rates.step()
        x.clamp_(0, 1)
    return best_x, best
