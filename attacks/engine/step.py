"""One evaluation of distance and slope for some victims, as a function of tensors: what is traced, measured and shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from fedveil.attacks.engine import paths
from fedveil.attacks.engine.distances import Distance
from fedveil.attacks.engine.fixed import Fixed
from fedveil.attacks.engine.heap import keep_memory
from fedveil.attacks.engine.memory import Footprint, footprint
from fedveil.attacks.engine.slopes import Order, agreed, forward_over_reverse, reverse_over_forward
from fedveil.attacks.priors import Prior, penalty_and_slope
from fedveil.attacks.target.problem import Problem, Tensors
from fedveil.defense.base import LossHook
from fedveil.fl.seeding import torch_stream


@dataclass(frozen=True)
class Layout:
    """All of a step that is not a tensor. Equal layouts of one classifier do the same.

    Attributes:
        distance: between gradients.
        priors: that hold nothing but numbers.
        order: of the two derivatives.
        trained: names of the weights whose gradient is matched.
        frozen: of all others that come with the problem.
        own: of those that the module has beside them.
        visible: of the gradients that are masked.
        own_weights: each victim has weights of its own.
        defended: what the clients' defence makes of the loss.
    """

    distance: Distance
    priors: tuple[Prior, ...]
    order: Order
    trained: tuple[str, ...]
    frozen: tuple[str, ...]
    own: tuple[str, ...]
    visible: tuple[str, ...]
    own_weights: bool
    defended: LossHook | None

    def compute(self, problem: Problem, x: Tensor, labels: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the objective (V,) and its slope, shaped as x (V, B, C, H, W); see `tensors_of` for what it takes."""
        names = (self.trained, self.frozen, self.own, self.trained, self.visible)
        rest = iter(tensors)
        trained, frozen, own, target, visible = ({name: next(rest) for name in some} for some in names)
        dims = 0 if self.own_weights else None
        weights = {**frozen, **own}, {**dict.fromkeys(frozen, dims), **dict.fromkeys(own)}
        gradient_of = vmap(grad(problem.loss), in_dims=(dims, weights[1], 0, 0), randomness="error")
        gradient = masked(gradient_of(trained, weights[0], x, labels), visible)
        # The slope lives on the visible entries alone: where g and T are both 0, so is dD/dg.
        value, direction = self.distance(gradient, masked(target, visible))
        slope_of = vmap(partial(self.order, problem.loss), in_dims=(dims, weights[1], 0, 0, 0), randomness="error")
        slope = slope_of(trained, weights[0], x, labels, direction)
        if self.priors:
            penalty, rise = penalty_and_slope(self.priors, x)
            value, slope = value + penalty, slope + rise
        return value, slope


class Step:
    """One evaluation for all victims of a problem at once.

    Args:
        problem: whose tensors are read once, here.
        distance: between gradients.
        priors: that hold nothing but numbers, see `plain`.
    """

    def __init__(self, problem: Problem, distance: Distance, priors: tuple[Prior, ...]) -> None:
        module = problem.model.module
        visible = problem.visible or {}
        own = {n: t for n, t in [*module.named_parameters(), *module.named_buffers()] if n not in problem.weights}
        like = next(iter(problem.target.values()))
        if like.device.type == "cpu":
            keep_memory()
        self._layout = Layout(
            distance,
            priors,
            order_of(problem),
            tuple(problem.trained),
            tuple(problem.frozen),
            tuple(own),
            tuple(n for n in problem.target if n in visible),
            problem.own_weights,
            problem.model.defended,
        )
        self._problem = problem
        tensors = [
            problem.labels,
            *problem.trained.values(),
            *problem.frozen.values(),
            *(t.detach().to(like.dtype) if t.is_floating_point() else t for t in own.values()),
            *problem.target.values(),
            *(visible[n] for n in self._layout.visible),
        ]
        self._fixed = Fixed(tensors)

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        """Return the objective (V,) and its slope, shaped as x (V, B, C, H, W)."""
        compute = partial(self._layout.compute, self._problem)
        return paths.run(self._problem.model.module, self._layout, compute, [x], self._fixed)

    def measured(self, x: Tensor) -> Footprint:
        """Return what an evaluation at x allocates."""
        return footprint(lambda: self._layout.compute(self._problem, x, *self._fixed.tensors))


def plain(prior: Prior) -> bool:
    """The prior holds nothing but numbers and words, so that equal ones do the same."""
    if not is_dataclass(prior) or isinstance(prior, type):
        return False
    return all(isinstance(getattr(prior, f.name), int | float | str | None) for f in fields(prior))


def masked(tensors: Tensors, masks: Tensors) -> Tensors:
    """Return the products with those masks that there are."""
    return {name: tensor * masks[name] if name in masks else tensor for name, tensor in tensors.items()}


# What is tried once for each classifier

_ORDERS: WeakKeyDictionary[nn.Module, dict[object, Order]] = WeakKeyDictionary()
_SIZES: WeakKeyDictionary[nn.Module, dict[object, Footprint]] = WeakKeyDictionary()


def order_of(problem: Problem) -> Order:
    """Return `forward_over_reverse` where PyTorch can do that and it gives what `reverse_over_forward` gives."""
    orders = _ORDERS.setdefault(problem.model.module, {})
    key = _kind(problem)
    if key not in orders:
        one, x, direction = _sample(problem)

        def slope(order: Order) -> Tensor:
            return slopes_along(one, x, direction, order)

        fits = agreed(partial(slope, forward_over_reverse), partial(slope, reverse_over_forward))
        orders[key] = forward_over_reverse if fits else reverse_over_forward
    return orders[key]


def slopes_along(problem: Problem, x: Tensor, direction: Tensors, order: Order) -> Tensor:
    """Return the gradient by x (V, B, C, H, W) of < grad_w L(x), v >, shaped as x, for v (V, ...) by name."""
    dims = 0 if problem.own_weights else None
    slope_of = vmap(partial(order, problem.loss), in_dims=(dims, dims, 0, 0, 0), randomness="error")
    slope: Tensor = slope_of(problem.trained, problem.frozen, x, problem.labels, direction)
    return slope


def size_of(problem: Problem, distance: Distance) -> Footprint:
    """Return what one evaluation allocates for one victim."""
    sizes = _SIZES.setdefault(problem.model.module, {})
    key = (_kind(problem), distance)
    if key not in sizes:
        one, x, _ = _sample(problem)
        sizes[key] = Step(one, distance, ()).measured(x)
    return sizes[key]


def _kind(problem: Problem) -> tuple[object, ...]:
    like = next(iter(problem.target.values()))
    batch = problem.labels.shape[1:]
    kind = tuple(problem.target), like.dtype, like.device, batch, problem.own_weights, problem.visible is not None
    return *kind, problem.model.defended


def _sample(problem: Problem) -> tuple[Problem, Tensor, Tensors]:
    """The first victim with random images, and a random direction."""
    one, stream = problem.take(slice(0, 1)), torch_stream(0, "sample")
    like = next(iter(one.target.values()))
    shape = (1, problem.labels.shape[1], *problem.model.image_shape)
    x = torch.rand(shape, generator=stream).to(like)
    return one, x, {n: torch.randn(t.shape, generator=stream).to(like) for n, t in one.target.items()}
