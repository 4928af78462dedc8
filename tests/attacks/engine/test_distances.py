from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fedveil.attacks.engine.distances import (
    Distance,
    Tensors,
    absolute_distance,
    cosine_distance,
    flat_dot,
    squared_distance,
    weighted,
)
from fedveil.fl.seeding import torch_stream

Plain = Callable[[Tensor, Tensor], Tensor]


def cosine(g: Tensor, t: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(g, t)


def squared(g: Tensor, t: Tensor) -> Tensor:
    return (g - t).square().sum(1) / t.square().sum(1)


def absolute(g: Tensor, t: Tensor) -> Tensor:
    return (g - t).abs().sum(1) / t.abs().sum(1)


DISTANCES: dict[str, tuple[Distance, Plain]] = {
    "cosine": (cosine_distance, cosine),
    "squared": (squared_distance, squared),
    "absolute": (absolute_distance, absolute),
}
each_distance = pytest.mark.parametrize(("distance", "plain"), DISTANCES.values(), ids=DISTANCES.keys())


def draw(seed: int, count: int = 2) -> list[Tensors]:
    stream = torch_stream(seed, "pair")
    shapes = {"w": (2, 3, 2), "b": (2, 4)}
    return [{n: torch.randn(s, generator=stream, dtype=torch.float64) for n, s in shapes.items()} for _ in range(count)]


def flat(tensors: Tensors) -> Tensor:
    return torch.cat([t.flatten(1) for t in tensors.values()], dim=1)


@each_distance
@given(st.integers(0, 10_000))
@settings(max_examples=20)
def test_value_and_slope_are_those_of_autograd(distance: Distance, plain: Plain, seed: int) -> None:
    gradient, target = draw(seed)
    value, slope = distance(gradient, target)
    leaves = {n: g.clone().requires_grad_(True) for n, g in gradient.items()}
    expected = plain(flat(leaves), flat(target))
    torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=1e-12)
    autograds = torch.autograd.grad(expected.sum(), list(leaves.values()))
    for mine, right in zip(slope.values(), autograds, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-10, atol=1e-12)


@each_distance
def test_weights_scale_layers_of_both_gradients(distance: Distance, plain: Plain) -> None:
    gradient, target = draw(1)
    value, slope = weighted(distance, {"w": 3.0})(gradient, target)
    leaves = {n: g.clone().requires_grad_(True) for n, g in gradient.items()}
    expected = plain(flat({**leaves, "w": 3 * leaves["w"]}), flat({**target, "w": 3 * target["w"]}))
    torch.testing.assert_close(value, expected.detach())
    for mine, right in zip(slope.values(), torch.autograd.grad(expected.sum(), [*leaves.values()]), strict=True):
        torch.testing.assert_close(mine, right)
    # A layer of weight 0 is not matched at all.
    hidden = weighted(distance, {"b": 0.0})
    assert torch.equal(hidden(gradient, target)[0], hidden({**gradient, "b": 9 * gradient["b"]}, target)[0])
    assert not hidden(gradient, target)[1]["b"].any()


@each_distance
@given(st.floats(1e-6, 1e6))
@settings(max_examples=20)
def test_the_unit_of_updates_does_not_matter(distance: Distance, plain: Plain, unit: float) -> None:
    gradient, target = draw(2)
    value, slope = distance(gradient, target)
    scaled_value, scaled_slope = distance(
        *({n: unit * t for n, t in tensors.items()} for tensors in (gradient, target))
    )
    torch.testing.assert_close(scaled_value, value)
    for name, part in slope.items():
        torch.testing.assert_close(scaled_slope[name] * unit, part)


@given(st.integers(0, 10_000), st.floats(1e-3, 1e3))
@settings(max_examples=30)
def test_cosine_is_blind_to_the_gradients_size(seed: int, scale: float) -> None:
    gradient, target = draw(seed)
    value, slope = cosine_distance(gradient, target)
    torch.testing.assert_close(cosine_distance({n: scale * g for n, g in gradient.items()}, target)[0], value)
    torch.testing.assert_close(flat_dot(slope, gradient), torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)


def test_distances_by_hand() -> None:
    # g = (3, 4), T = (4, 3), each over two tensors: cos = 24/25, dD/dg = -T/25 + 24/25 g/25 = (-28, 21)/625.
    gradient = {"a": torch.tensor([[3.0]]), "b": torch.tensor([[[4.0]]])}
    target = {"a": torch.tensor([[4.0]]), "b": torch.tensor([[[3.0]]])}
    expected = {
        cosine_distance: (0.04, -28 / 625, 21 / 625),
        squared_distance: (2 / 25, -2 / 25, 2 / 25),
        absolute_distance: (2 / 7, -1 / 7, 1 / 7),
    }
    for distance, (value, a, b) in expected.items():
        found, slope = distance(gradient, target)
        torch.testing.assert_close(found, torch.tensor([value]))
        torch.testing.assert_close(slope["a"], torch.tensor([[a]]))
        torch.testing.assert_close(slope["b"], torch.tensor([[[b]]]))


def test_cosine_distance_at_its_ends() -> None:
    target = {"a": torch.tensor([[1.0, 2.0]] * 3)}
    gradient = {"a": torch.tensor([[2.0, 4.0], [-1.0, -2.0], [2.0, -1.0]])}
    distance, _ = cosine_distance(gradient, target)
    torch.testing.assert_close(distance, torch.tensor([0.0, 2.0, 1.0]), atol=1e-6, rtol=0)


@each_distance
def test_a_vanished_gradient_or_target_stays_finite(distance: Distance, plain: Plain) -> None:
    zero, some = {"a": torch.zeros(1, 3)}, {"a": torch.ones(1, 3)}
    for gradient, target in [(zero, some), (some, zero), (zero, zero)]:
        value, slope = distance(gradient, target)
        assert bool(value.isfinite().all())
        assert bool(slope["a"].isfinite().all())
    assert float(distance(zero, some)[0]) == 1.0


def test_no_tensors_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="no tensors"):
        flat_dot({}, {})
