"""The federation of the speed benchmark that all sides run: the same shards, network, first weights and local training.

Python, NumPy and PyTorch only, since each side has an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

DONE = '{"done"'
"""How the line begins by which a side says that a round is over; it may print others before."""
CLASSES = 10


@dataclass(frozen=True)
class Settings:
    """What is federated.

    Attributes:
        clients: who share the images in equal parts.
        cohort: clients per round.
        epochs: passes of a client over its images in a round.
        rounds: that will be asked for, at most.
        batch_size: images per step.
        learning_rate: of plain SGD.
        width: channels of the network's first stage.
    """

    clients: int = 100
    cohort: int = 10
    epochs: int = 1
    rounds: int = 1
    batch_size: int = 10
    learning_rate: float = 0.05
    width: int = 16

    @classmethod
    def given(cls) -> Settings:
        """Return those of the command line."""
        parser = argparse.ArgumentParser()
        for name in ("clients", "cohort", "epochs", "rounds"):
            parser.add_argument(f"--{name}", type=int, default=getattr(cls, name))
        return cls(**vars(parser.parse_args()))

    def arguments(self) -> list[str]:
        """Return the command line that gives them."""
        return [f"--{name}={getattr(self, name)}" for name in ("clients", "cohort", "epochs", "rounds")]


def turns() -> Iterator[int]:
    """Yield the number of each round that is asked for by a line on standard input, and say when it is over."""
    for number, _ in enumerate(sys.stdin):
        yield number
        print(json.dumps({"done": number}), flush=True)


def images(split: str) -> tuple[Tensor, Tensor]:
    """Return all images of CIFAR-10's subset, (n, 3, 32, 32) uint8, and their labels, (n,) int64."""
    with np.load(Path(os.environ["FEDVEIL_DATA"]) / "cifar10_subset.npz") as archive:
        pixels = torch.from_numpy(archive[f"{split}_images"]).permute(0, 3, 1, 2).contiguous()
        return pixels, torch.from_numpy(archive[f"{split}_labels"].astype(np.int64))


@cache
def shards(settings: Settings) -> tuple[tuple[Tensor, Tensor], ...]:
    """Return each client's images and labels. A process reads them once: the file is no framework's cost."""
    pixels, labels = images("train")
    bounds = [len(labels) * client // settings.clients for client in range(settings.clients + 1)]
    return tuple((pixels[a:b].clone(), labels[a:b].clone()) for a, b in pairwise(bounds))


def network(settings: Settings) -> nn.Module:
    """Return fedveil's ConvNet for these images, with seeded weights."""
    torch.manual_seed(0)
    sizes = [3, settings.width, 2 * settings.width, 4 * settings.width]
    stages = [
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.GroupNorm(8, b), nn.ReLU(), nn.AvgPool2d(2))
        for a, b in pairwise(sizes)
    ]
    return nn.Sequential(*stages, nn.Flatten(), nn.Linear(16 * sizes[-1], CLASSES))


def train(model: nn.Module, pixels: Tensor, labels: Tensor, settings: Settings) -> None:
    """A client's turn, as simply as it can be written."""
    optimizer = torch.optim.SGD(model.parameters(), settings.learning_rate)
    for _ in range(settings.epochs):
        for batch in torch.randperm(len(labels)).split(settings.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(model(pixels[batch].float() / 255), labels[batch]).backward()
            optimizer.step()


@torch.no_grad()
def loss_of(model: nn.Module) -> float:
    """Return the mean loss on the test images, by which it is seen that all sides do the same work."""
    pixels, labels = images("test")
    return float(F.cross_entropy(model(pixels.float() / 255), labels))


def report(model: nn.Module) -> None:
    """Say the last thing that a side says."""
    print(json.dumps({"loss": loss_of(model)}), flush=True)
