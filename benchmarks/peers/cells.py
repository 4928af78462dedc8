"""The cells of the quality benchmark: which victims send which updates, in the order in which they are attacked.

Nothing but Python is imported here: every environment reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

VICTIMS = 32
LEARNING_RATE = 0.1
DATA = ("mni152", "cifar10")
WEIGHTS = ("initial", "trained")
CLASSES = {"mni152": 3, "cifar10": 10}
CHANNELS = {"mni152": 1, "cifar10": 3}


@dataclass(frozen=True)
class Network:
    """A classifier, its normalisation and its width; None for the model's own default."""

    model: str
    norm: str | None = None
    width: int | None = None

    def __str__(self) -> str:
        width = None if self.width is None else f"w{self.width}"
        return "-".join(part for part in (self.model, self.norm, width) if part)


LENET, CONVNET = Network("lenet"), Network("convnet")
RESNETS = Network("resnet20", "batch"), Network("resnet20", "group")
NETWORKS = (LENET, CONVNET, *RESNETS)


@dataclass(frozen=True)
class Cell:
    """One setting of the victims.

    Attributes:
        data: name of the data set.
        network: the classifier.
        weights: ``initial`` or ``trained``.
        batch: images behind each update; all cells have 32 victims, in 32 / ``batch`` updates.
        steps: local steps, each on the whole batch.
    """

    data: str
    network: Network
    weights: str
    batch: int
    steps: int

    def __str__(self) -> str:
        return f"{self.network}_{self.data}_{self.weights}_batch{self.batch}_steps{self.steps}"


def _grid(networks: tuple[Network, ...], batches: tuple[int, ...], steps: tuple[int, ...]) -> Iterator[Cell]:
    for network, step, batch, weights, data in product(networks, steps, batches, WEIGHTS, DATA):
        yield Cell(data, network, weights, batch, step)


def work() -> list[tuple[Cell, int]]:
    """Return all cells with their gradient evaluations, the most telling first."""
    small = (LENET, CONVNET)
    cells = [(cell, 200) for cell in _grid(small, (1,), (1,))]
    cells += [(cell, 200) for cell in _grid(small, (4, 8), (1,))]
    cells += [(cell, 200) for cell in _grid((LENET,), (1, 4, 8), (5,))]
    cells += [(cell, 1000) for cell in _grid((LENET,), (1,), (1,))]
    cells += [(cell, 200) for cell in _grid(RESNETS, (8, 4, 1), (1,))]
    cells += [(cell, 200) for cell in _grid((CONVNET,), (8, 4, 1), (5,))]
    cells += [(cell, 1000) for cell in _grid((LENET, CONVNET), (8, 4, 1), (1,))]
    rest = [(cell, n) for n in (200, 1000) for cell in _grid(NETWORKS, (8, 4, 1), (1, 5))]
    return list(dict.fromkeys([*cells, *rest]))
