from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedveil.attacks.engine.distances import Distance, absolute_distance, cosine_distance, squared_distance
from fedveil.attacks.engine.objective import Problem, objective
from fedveil.attacks.engine.unrolled import Path, Unrolled, replayed, walk
from fedveil.attacks.priors import TotalVariation
from fedveil.attacks.target.model import target_model
from fedveil.attacks.target.problem import Tensors
from fedveil.fl.data.images import Images
from fedveil.fl.hooks import NoHooks
from fedveil.fl.messages import UpdateKind
from fedveil.fl.models import ModelSpec, build_model, init_model
from fedveil.fl.seeding import torch_stream
from fedveil.fl.training import LocalTraining, local_update

SPECS = [
    ModelSpec("lenet", (1, 8, 8), 3, width=3),
    ModelSpec("convnet", (3, 8, 8), 3, width=2, norm="batch"),
    ModelSpec("convnet", (1, 8, 8), 3, width=2, norm="group"),
]


def problem_and_images(
    spec: ModelSpec, *, own: bool = False, masks: bool = False, victims: int = 3
) -> tuple[Problem, Tensor, Path]:
    stream = torch_stream(4, "unrolled")
    model = target_model(build_model(spec), image_shape=spec.image_shape, classes=spec.classes)
    model.module.double()
    weights = {n: p.detach().double() for n, p in model.module.named_parameters()}
    if own:
        weights = {
            n: w + 0.01 * torch.randn((victims, *w.shape), generator=stream).double() for n, w in weights.items()
        }
    shapes = {n: w.shape if own else (victims, *w.shape) for n, w in weights.items()}
    target = {n: torch.randn(shape, generator=stream, dtype=torch.float64) for n, shape in shapes.items()}
    visible = {n: (t > -0.5).double() for n, t in target.items()} if masks else None
    labels = torch.randint(3, (victims, 2), generator=stream)
    x = torch.rand((victims, 2, *spec.image_shape), generator=stream, dtype=torch.float64)
    path = Path(3, torch.tensor([0.3, 0.05, 1.0], dtype=torch.float64)[:victims])
    return Problem(model, weights, target, labels, own, visible), x, path


def by_double_backward(
    problem: Problem, path: Path, distance: Distance, x: Tensor, victim: int
) -> tuple[Tensor, Tensor]:
    """The client's steps as autograd sees them."""
    x = x[victim].clone().requires_grad_(True)
    weights = {
        n: (w[victim] if problem.own_weights else w).clone().requires_grad_(True) for n, w in problem.weights.items()
    }
    total: Tensors = {}
    for _ in range(path.steps):
        loss = F.cross_entropy(problem.model.logits(weights, x), problem.labels[victim])
        gradient = dict(zip(weights, torch.autograd.grad(loss, [*weights.values()], create_graph=True), strict=True))
        total = {n: total.get(n, 0) + g for n, g in gradient.items()}
        weights = {n: w - path.rates[victim] * gradient[n] for n, w in weights.items()}
    masks = problem.visible or {}
    mine = {n: (t / path.steps * (masks[n][victim] if n in masks else 1))[None] for n, t in total.items()}
    theirs = {n: (t[victim] * (masks[n][victim] if n in masks else 1))[None] for n, t in problem.target.items()}
    value = distance(mine, theirs)[0].squeeze(0)
    return value.detach(), torch.autograd.grad(value, x)[0]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.name}-{spec.norm}")
@pytest.mark.parametrize("distance", [cosine_distance, squared_distance, absolute_distance])
def test_it_is_the_double_backward_through_all_steps(spec: ModelSpec, distance: Distance) -> None:
    own = distance is squared_distance
    problem, x, path = problem_and_images(spec, own=own, masks=distance is cosine_distance)
    value, slope = Unrolled(problem, path, distance)(x)
    for victim in range(3):
        theirs, their_slope = by_double_backward(problem, path, distance, x, victim)
        torch.testing.assert_close(value[victim], theirs, rtol=1e-9, atol=1e-12)
        assert float((slope[victim] - their_slope).norm() / their_slope.norm()) < 1e-8


def test_one_step_is_the_engines() -> None:
    problem, x, path = problem_and_images(SPECS[0])
    one = Path(1, path.rates)
    priors = (TotalVariation(0.3),)
    value, slope = Unrolled(problem, one, cosine_distance, priors)(x)
    theirs, their_slope = objective(problem, priors=priors)(x)
    torch.testing.assert_close(value, theirs)
    torch.testing.assert_close(slope, their_slope)


def test_some_of_the_victims() -> None:
    problem, x, path = problem_and_images(SPECS[0], own=True, masks=True)
    whole = Unrolled(problem, path, squared_distance, (TotalVariation(0.1),))
    at = torch.tensor([2, 0])
    for all_of_it, part in zip(whole(x), whole.take(at)(x[at]), strict=True):
        torch.testing.assert_close(all_of_it[at], part)


def test_what_is_replayed_is_what_the_client_sends() -> None:
    spec = SPECS[0]
    images = Images(
        torch.randint(256, (4, 1, 8, 8), generator=torch_stream(0, "images")).to(torch.uint8), torch.arange(4) % 3
    )
    training = LocalTraining(kind=UpdateKind.DELTA, epochs=4, batch_size=4, learning_rate=0.2)
    weights = init_model(spec, 0)
    update = local_update(build_model(spec), weights, images, NoHooks(), training, torch_stream(0, "client")).update
    target = {n: update.gradient_scale * t[None] for n, t in update.tensors.items()}
    model = target_model(build_model(spec), image_shape=spec.image_shape, classes=spec.classes)
    problem = Problem(model, dict(weights), target, images.labels[None])
    rates = torch.tensor([0.2])
    sent = replayed(problem, images.floats()[None], steps=4, rates=rates)
    for name, tensor in target.items():
        torch.testing.assert_close(sent[name], tensor, rtol=1e-3, atol=1e-5)
    value, _ = Unrolled(problem, Path(4, rates), squared_distance)(images.floats()[None])
    assert float(value) < 1e-8
    places, _ = walk(problem, images.floats()[None], Path(4, rates))
    assert len(places) == 4
    assert torch.equal(places[0]["head.bias"][0], weights["head.bias"])
