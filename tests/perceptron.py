"""A small perceptron, what its gradient is of random images, and a noise shaped as that."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedveil.fl.seeding import torch_stream

SHAPE = (1, 8, 8)


def network(width: int = 64) -> nn.Module:
    """Two linear layers, each of whose weights has 64 columns."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Sigmoid(), nn.Linear(width, 4))


def noise(model: nn.Module) -> dict[str, Tensor]:
    stream = torch_stream(0, "noise")
    return {name: torch.randn(p.shape, generator=stream) for name, p in model.named_parameters()}


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    loss = nn.functional.cross_entropy(model(x), y)
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))


def images(count: int) -> Tensor:
    return torch.rand((count, *SHAPE), generator=torch_stream(0, "images"))
