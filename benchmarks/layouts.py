"""Ways to train several small clients on one core: one by one in two layouts of memory, or all in one step.

    FEDVEIL_DATA=... python -m benchmarks.layouts

A step of ten clients, each with its own weights and its own ten images of CIFAR-10, on the ConvNet of `benchmarks.fl_speed`.
``vmap`` is what any model could have; ``grouped`` is this network written once more by hand, with the clients side by side
as groups of channels. The ways take turns; seconds are CPU's.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from benchmarks.fl_speed import spread
from benchmarks.machine import about
from benchmarks.peers.federation import Settings, network, shards

Step = Callable[[Tensor, Tensor], list[Tensor]]
"""Images (K, B, 3, 32, 32) and labels (K, B) to gradients, one for each parameter, of K clients, (K, ...)."""


def one_by_one(clients: list[nn.Module], layout: torch.memory_format) -> Step:
    """Return the plain loop over clients."""
    for client in clients:
        client.to(memory_format=layout)

    def step(x: Tensor, y: Tensor) -> list[Tensor]:
        each = [
            torch.autograd.grad(F.cross_entropy(client(own), labels), list(client.parameters()))
            for client, own, labels in zip(clients, x, y, strict=True)
        ]
        return [torch.stack(same) for same in zip(*each, strict=True)]

    return step


def mapped(clients: list[nn.Module]) -> Step:
    """Return PyTorch's own vectorisation."""
    names = [name for name, _ in clients[0].named_parameters()]

    def loss(parameters: tuple[Tensor, ...], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(clients[0], dict(zip(names, parameters, strict=True)), (x,)), y)

    weights = tuple(stacked(clients))
    return lambda x, y: list(vmap(grad(loss))(weights, x, y))


def grouped(clients: list[nn.Module], layout: torch.memory_format) -> Step:
    """Return the network with its clients as groups of channels."""
    weights = [tensor.requires_grad_() for tensor in stacked(clients)]
    count = len(clients)

    def step(x: Tensor, y: Tensor) -> list[Tensor]:
        features = x.transpose(0, 1).flatten(1, 2).contiguous(memory_format=layout)
        for stage in range(3):
            kernel, scale, shift = weights[3 * stage : 3 * stage + 3]
            features = F.conv2d(features, kernel.flatten(0, 1), padding=1, groups=count)
            features = F.group_norm(features, 8 * count, scale.flatten(), shift.flatten())
            features = F.avg_pool2d(features.relu(), 2)
        rows = features.unflatten(1, (count, -1)).flatten(2).transpose(0, 1)
        logits = torch.baddbmm(weights[-1][:, None], rows, weights[-2].mT)
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum") / y.shape[1]
        return list(torch.autograd.grad(loss, weights))

    return step


def stacked(clients: list[nn.Module]) -> list[Tensor]:
    """Return the clients' parameters, (K, ...) each."""
    every = zip(*(client.parameters() for client in clients), strict=True)
    return [torch.stack([one.detach() for one in same]) for same in every]


def ways(count: int, settings: Settings) -> dict[str, Step]:
    """Return the ways by name; all have the same weights."""

    def clients() -> list[nn.Module]:
        return [network(settings) for _ in range(count)]

    return {
        "one by one": one_by_one(clients(), torch.contiguous_format),
        "one by one, channels last": one_by_one(clients(), torch.channels_last),
        "vmap": mapped(clients()),
        "grouped": grouped(clients(), torch.contiguous_format),
        "grouped, channels last": grouped(clients(), torch.channels_last),
    }


def batch(count: int, settings: Settings) -> tuple[Tensor, Tensor]:
    """Return the first batch of each client."""
    pixels, labels = zip(*(own for own in shards(settings)[:count]), strict=True)
    size = settings.batch_size
    return torch.stack([own[:size] for own in pixels]).float() / 255, torch.stack([own[:size] for own in labels])


def measured(count: int, settings: Settings, seconds: float) -> dict[str, Any]:
    """Return milliseconds of a step of one client, and the ratios to one by one, turn by turn."""
    x, y = batch(count, settings)
    steps = ways(count, settings)
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step(x, y)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, step in steps.items():
            began = time.process_time()
            step(x, y)
            taken[name].append(time.process_time() - began)
    floor = taken["one by one"]
    return {
        "clients": count,
        "width": settings.width,
        "milliseconds": {name: round(1e3 * median(values) / count, 2) for name, values in taken.items()},
        "ratios": {name: spread([a / b for a, b in zip(values, floor, strict=True)]) for name, values in taken.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=12.0, help="per row")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/layouts.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measured(count, Settings(width=width), arguments.seconds) for count, width in ((10, 8), (10, 16), (10, 32))]
    arguments.out.write_text(json.dumps({"machine": about(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
