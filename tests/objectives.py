"""Objectives for optimisers: bowls, one function for all victims, a real inversion, and what keeps the visited points."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedveil.attacks.engine.distances import squared_distance
from fedveil.attacks.engine.objective import Problem, objective
from fedveil.attacks.optimizers import Objective
from fedveil.attacks.target.model import target_model
from fedveil.fl.models import ModelSpec, build_model
from fedveil.fl.seeding import torch_stream

LENET = ModelSpec("lenet", (1, 12, 12), 3, width=4)


Step = Callable[[Tensor], tuple[Tensor, Tensor]]


class Each:
    """An objective made of a function that gets x and the victims' positions."""

    def __init__(self, step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], at: Tensor) -> None:
        self.step = step
        self.at = at

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.step(x, self.at)

    def take(self, at: Tensor) -> Each:
        return Each(self.step, self.at[at])


def alike(step: Step) -> Each:
    """The same function for all victims."""
    return Each(lambda x, _: step(x), torch.arange(99))


def bowl(centre: Tensor) -> Each:
    def step(x: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        gap = x - (centre[at] if len(centre) > 1 else centre)
        return gap.square().flatten(1).sum(1), 2 * gap

    return Each(step, torch.arange(len(centre)))


class Recorder:
    """Keeps every visited point and its objective."""

    def __init__(self, step: Objective) -> None:
        self.step = step
        self.points: list[Tensor] = []
        self.objectives: list[Tensor] = []

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        objective, slope = self.step(x)
        self.points.append(x.clone())
        self.objectives.append(objective)
        return objective, slope

    def take(self, at: Tensor) -> Objective:
        return self.step.take(at)


def lenet_step(victims: int, *, dtype: torch.dtype = torch.float64) -> tuple[Objective, Tensor]:
    """Squared distance to the gradients of smooth random images, and those images."""
    model = target_model(build_model(LENET), image_shape=LENET.image_shape, classes=LENET.classes)
    model.module.to(dtype)
    weights = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    coarse = torch.rand((victims, 1, 4, 4), generator=torch_stream(5, "truth"))
    truth = torch.nn.functional.interpolate(coarse, (12, 12), mode="bilinear")[:, None].to(dtype)
    labels = torch.arange(victims)[:, None] % 3
    leaves = {name: w.clone().requires_grad_(True) for name, w in weights.items()}
    problem = Problem(model, weights, {}, labels)
    gradients = [
        torch.autograd.grad(problem.loss(leaves, {}, x, y), [*leaves.values()])
        for x, y in zip(truth, labels, strict=True)
    ]
    target = {name: torch.stack(own) for name, own in zip(leaves, zip(*gradients, strict=True), strict=True)}
    step = objective(Problem(model, weights, target, labels), distance=squared_distance)
    return step, truth
