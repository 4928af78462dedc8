from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedveil.attacks.engine.distances import Distance, cosine_distance, squared_distance
from fedveil.attacks.engine.joint import Joint
from fedveil.attacks.engine.objective import Problem
from fedveil.attacks.engine.unrolled import Path
from fedveil.attacks.priors import TotalVariation
from fedveil.attacks.target.model import target_model
from fedveil.attacks.target.problem import Tensors
from fedveil.fl.models import ModelSpec, build_model
from fedveil.fl.seeding import torch_stream

SPEC = ModelSpec("lenet", (1, 8, 8), 3, width=3)
SHAPE = (2, 1, 8, 8)


def joint(steps: int, distance: Distance) -> tuple[Joint, Tensor]:
    stream = torch_stream(4, "joint")
    model = target_model(build_model(SPEC), image_shape=SPEC.image_shape, classes=3)
    model.module.double()
    weights = {n: p.detach() for n, p in model.module.named_parameters()}
    target = {n: torch.randn((3, *w.shape), generator=stream, dtype=torch.float64) for n, w in weights.items()}
    problem = Problem(model, weights, target, torch.zeros((3, 2), dtype=torch.int64))
    path = Path(steps, torch.tensor([0.3, 0.05, 1.0], dtype=torch.float64))
    found = Joint(problem, SHAPE, 3, path, distance, (TotalVariation(0.1),))
    images = torch.rand((3, *SHAPE), generator=stream, dtype=torch.float64)
    return found, found.pack(images, torch.randn((3, 2, 3), generator=stream, dtype=torch.float64))


def by_double_backward(objective: Joint, x: Tensor, victim: int) -> tuple[Tensor, Tensor]:
    """Labels and images as autograd sees them, without anything of the fast path."""
    x = x[victim].clone().requires_grad_(True)
    images, logits = x[: 2 * 64].view(SHAPE), x[2 * 64 :].view(2, 3)
    weights = {n: w.clone().requires_grad_(True) for n, w in objective.problem.weights.items()}
    total: Tensors = {}
    for _ in range(objective.path.steps):
        scores = objective.problem.model.logits(weights, images)
        loss = -(logits.softmax(1) * F.log_softmax(scores, 1)).sum(1).mean()
        gradient = dict(zip(weights, torch.autograd.grad(loss, [*weights.values()], create_graph=True), strict=True))
        total = {n: total.get(n, 0) + g for n, g in gradient.items()}
        weights = {n: w - objective.path.rates[victim] * gradient[n] for n, w in weights.items()}
    mine = {n: t[None] / objective.path.steps for n, t in total.items()}
    theirs = {n: t[victim][None] for n, t in objective.problem.target.items()}
    value = (objective.distance(mine, theirs)[0] + TotalVariation(0.1)(images[None])).squeeze(0)
    return value.detach(), torch.autograd.grad(value, x)[0]


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("distance", [squared_distance, cosine_distance])
def test_it_is_the_double_backward_by_images_and_labels(steps: int, distance: Distance) -> None:
    objective, x = joint(steps, distance)
    value, slope = objective(x)
    for victim in range(3):
        theirs, their_slope = by_double_backward(objective, x, victim)
        torch.testing.assert_close(value[victim], theirs, rtol=1e-9, atol=1e-12)
        assert float((slope[victim] - their_slope).norm() / their_slope.norm()) < 1e-8


def test_some_of_the_victims() -> None:
    objective, x = joint(2, squared_distance)
    at = torch.tensor([2, 0])
    for whole, part in zip(objective(x), objective.take(at)(x[at]), strict=True):
        torch.testing.assert_close(whole[at], part)


def test_variables_are_packed_and_bounded() -> None:
    objective, x = joint(1, squared_distance)
    images, logits = objective.unpack(x)
    assert images.shape == (3, *SHAPE)
    assert logits.shape == (3, 2, 3)
    assert torch.equal(objective.pack(images, logits), x)
    low, high = objective.bounds(x)
    assert low.tolist() == [0.0] * 128 + [-torch.inf] * 6
    assert high.tolist() == [1.0] * 128 + [torch.inf] * 6
