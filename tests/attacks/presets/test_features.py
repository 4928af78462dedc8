from __future__ import annotations

import pytest
import torch

from fedveil.attacks.engine.distances import cosine_distance, squared_distance
from fedveil.attacks.presets.features import FeatureDistance, with_features
from fedveil.attacks.target.model import target_model
from fedveil.attacks.target.problem import Problem, Tensors
from fedveil.fl.models import ModelSpec, build_model


def nothing(gradient: Tensors, target: Tensors) -> tuple[torch.Tensor, Tensors]:
    return torch.zeros(len(gradient["w"])), {n: torch.zeros_like(g) for n, g in gradient.items()}


FEATURES = FeatureDistance(nothing, 2.0, "w", "b")


def gradients(*rows: tuple[float, list[float]]) -> Tensors:
    """Errors at the classes, and the features behind them."""
    bias = torch.tensor([[error for error, _ in rows]])
    return {"w": torch.tensor([[[error * f for f in features] for error, features in rows]]), "b": bias}


def test_features_of_the_classes_that_occur_are_compared_whatever_the_errors() -> None:
    seen = gradients((-0.01, [3.0, 4.0]), (0.01, [3.0, 4.0]))
    same = gradients((-0.5, [3.0, 4.0]), (0.5, [9.0, 9.0]))
    assert FEATURES(same, seen)[0].item() == pytest.approx(0, abs=1e-9)
    # 2 * (1 + 4) / (9 + 16)
    assert FEATURES(gradients((-0.5, [2.0, 2.0]), (0.5, [0.0, 0.0])), seen)[0].item() == pytest.approx(0.4)


def test_classes_weigh_as_much_as_their_errors() -> None:
    seen = gradients((-0.3, [1.0, 0.0]), (-0.1, [0.0, 1.0]))
    half = gradients((-0.3, [1.0, 0.0]), (-0.1, [0.0, 0.0]))
    assert FEATURES(half, seen)[0].item() == pytest.approx(2 * 0.25)


def test_the_slope_is_that_of_the_value() -> None:
    stream = torch.Generator().manual_seed(4)
    shapes = {"w": (2, 3, 4), "b": (2, 3), "other": (2, 5)}
    given, seen = ({n: torch.randn(s, generator=stream).double() for n, s in shapes.items()} for _ in range(2))
    # Also where an entry is too short to divide by, or has the wrong sign.
    given["b"][0, 0], seen["b"][0, 0] = 0.2, -0.7
    given["b"][1] -= 3
    distance = FeatureDistance(squared_distance, 0.5, "w", "b")
    leaves = {n: g.clone().requires_grad_(True) for n, g in given.items()}
    wanted = torch.autograd.grad(distance(leaves, seen)[0].sum(), list(leaves.values()))
    for mine, right in zip(distance(given, seen)[1].values(), wanted, strict=True):
        torch.testing.assert_close(mine, right)


def test_the_last_layer_is_found_and_left_out_where_the_update_lacks_it() -> None:
    model = target_model(build_model(ModelSpec("lenet", (1, 16, 16), 3)), image_shape=(1, 16, 16), classes=3)
    weights = {name: weight.detach() for name, weight in model.module.named_parameters()}
    problem = Problem(model, weights, {n: w[None] for n, w in weights.items()}, torch.zeros(1, 1, dtype=torch.int64))
    assert with_features(problem, cosine_distance, 3.0) == FeatureDistance(
        cosine_distance, 3.0, "head.weight", "head.bias"
    )
    assert with_features(problem, cosine_distance, 0.0) is cosine_distance
    frozen = Problem(model, weights, {"head.weight": weights["head.weight"][None]}, problem.labels)
    assert with_features(frozen, cosine_distance, 3.0) is cosine_distance
