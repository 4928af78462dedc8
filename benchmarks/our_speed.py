"""Our side of the speed benchmark: a step of the engine, the whole loop around it, and the floor below both."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.peers.serving import CLASSES, SHAPE, Program, Request, serve
from fedveil.attacks.engine.objective import Problem, objective
from fedveil.attacks.optimizers import Adam
from fedveil.attacks.priors import TotalVariation
from fedveil.attacks.target.model import target_model
from fedveil.fl.models import ModelSpec, build_model
from fedveil.fl.training import exchanged


def _model(request: Request) -> nn.Module:
    network = request.network
    model = build_model(ModelSpec(network.model, SHAPE, CLASSES, network.norm, network.width))
    return model.to(request.device)


def _victims(request: Request) -> tuple[torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (request.victims, 1), generator=stream)
    return torch.rand(request.victims, 1, *SHAPE, generator=stream).to(request.device), labels.to(request.device)


def _problem(request: Request) -> Problem:
    model, (images, labels) = _model(request), _victims(request)
    gradients = [
        torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        for x, y in zip(images, labels, strict=True)
    ]
    names = [name for name, _ in model.named_parameters()]
    target = {name: torch.stack(own) for name, own in zip(names, zip(*gradients, strict=True), strict=True)}
    attacked = target_model(model, image_shape=SHAPE, classes=CLASSES)
    return Problem(attacked, attacked.known(exchanged(model)), target, labels)


def step(request: Request) -> Program:
    """Cosine distance and total variation of all victims, with their gradient by the images."""
    matching = objective(_problem(request), priors=[TotalVariation(0.01)])
    images = torch.full((request.victims, 1, *SHAPE), 0.5, device=request.device)

    def go(steps: int) -> int:
        for _ in range(steps):
            matching(images)
        return steps * request.victims

    return go


def loop(request: Request) -> Program:
    """Inverting Gradients: the same in signed Adam, with the box and the best iterate of each victim."""
    matching = objective(_problem(request), priors=[TotalVariation(0.01)])
    start = torch.rand(request.victims, 1, *SHAPE, device=request.device)

    def go(steps: int) -> int:
        Adam(steps, 0.05).minimise(matching, start)
        return (steps + 1) * request.victims  # the start is evaluated too

    return go


def floor(request: Request) -> Program:
    """One forward and backward pass of all victims as one batch: the least that a gradient costs."""
    model, (images, labels) = _model(request), _victims(request)
    parameters = list(model.parameters())

    def go(steps: int) -> int:
        for _ in range(steps):
            torch.autograd.grad(F.cross_entropy(model(images[:, 0]), labels[:, 0]), parameters)
        return steps * request.victims

    return go


if __name__ == "__main__":
    serve({"step": step, "loop": loop, "floor": floor})
