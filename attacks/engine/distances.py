"""How far a dummy gradient is from the observed one: distances D(g, T), each with its slope dD/dg in closed form.

A distance takes the two gradients as (V, ...) by parameter name and returns (V,) distances, and dD/dg shaped as g. All
three are blind to the unit of the update: they are relative to the size of T.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from fedveil.attacks.target.problem import Tensors

Distance = Callable[[Tensors, Tensors], tuple[Tensor, Tensors]]

_LEAST = 1e-24
"""Stands in for the square of a norm that vanishes."""


def flat_dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """Inner product over all tensors, per victim: dicts of (V, ...) to (V,)."""
    return _total({name: left * b[name] for name, left in a.items()})


def cosine_distance(gradient: Tensors, target: Tensors) -> tuple[Tensor, Tensors]:
    """D = 1 - <g, T> / (|g| |T|) over all layers as one vector (Geiping et al. 2020)."""
    gg, gt, tt = flat_dot(gradient, gradient), flat_dot(gradient, target), flat_dot(target, target)
    g_norm, t_norm = gg.clamp_min(_LEAST).sqrt(), tt.clamp_min(_LEAST).sqrt()
    cosine = gt / (g_norm * t_norm)
    along_t, along_g = -1 / (g_norm * t_norm), cosine / g_norm.square()
    slope = {n: (_spread(along_t, g) * target[n]).addcmul(_spread(along_g, g), g) for n, g in gradient.items()}
    return 1 - cosine, slope


def squared_distance(gradient: Tensors, target: Tensors) -> tuple[Tensor, Tensors]:
    """D = |g - T|^2 / |T|^2 (Zhu et al. 2019, there without the denominator)."""
    gap = {n: g - target[n] for n, g in gradient.items()}
    size = flat_dot(target, target).clamp_min(_LEAST)
    return flat_dot(gap, gap) / size, {n: _spread(2 / size, d) * d for n, d in gap.items()}


def absolute_distance(gradient: Tensors, target: Tensors) -> tuple[Tensor, Tensors]:
    """D = sum |g - T| / sum |T|: single entries that are far off, as clipping and noise make them, weigh less."""
    gap = {n: g - target[n] for n, g in gradient.items()}
    size = _total({n: t.abs() for n, t in target.items()}).clamp_min(_LEAST)
    distance = _total({n: d.abs() for n, d in gap.items()}) / size
    return distance, {n: _spread(1 / size, d) * d.sign() for n, d in gap.items()}


def weighted(distance: Distance, weights: Mapping[str, float]) -> Distance:
    """Return the distance of gradients whose layers are scaled first: D(w g, w T).

    Args:
        distance: any of the above.
        weights: factors by parameter name; 1 for those that are not given.
    """
    return _Weighted(distance, tuple(sorted(weights.items())))


@dataclass(frozen=True)
class _Weighted:
    """Equal ones are the same to the engine, which traces each distance once."""

    distance: Distance
    weights: tuple[tuple[str, float], ...]

    def __call__(self, gradient: Tensors, target: Tensors) -> tuple[Tensor, Tensors]:
        value, slope = self.distance(self._scaled(gradient), self._scaled(target))
        return value, self._scaled(slope)

    def _scaled(self, tensors: Tensors) -> Tensors:
        factors = dict(self.weights)
        return {n: factors.get(n, 1.0) * t for n, t in tensors.items()}


def _total(tensors: Tensors) -> Tensor:
    """Sum of all entries, per victim."""
    if not tensors:
        raise ValueError("no tensors")
    first, *others = (tensor.flatten(1).sum(dim=1) for tensor in tensors.values())
    return sum(others, start=first)


def _spread(factor: Tensor, like: Tensor) -> Tensor:
    return factor.view(-1, *[1] * (like.ndim - 1))
