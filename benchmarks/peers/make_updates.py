"""Write what the victims of the quality benchmark send, for every side to attack.

    python -m benchmarks.peers.make_updates --networks lenet convnet

One .pt file per cell: the server's weights, the victims' images and labels, and their updates from the client's own path.
Victims are private images. Trained weights have seen the private images of all clients, victims included.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import fedveil as fv
from benchmarks.peers.cells import LEARNING_RATE, NETWORKS, VICTIMS, Cell, Network, work
from fedveil.fl.data import split_train
from fedveil.fl.data.images import Images
from fedveil.fl.models import ModelSpec, build_model
from fedveil.fl.seeding import torch_stream
from fedveil.fl.training import exchanged

CELLS = Path("runs/quality/cells")
STEPS, BATCH, RATE = 400, 64, 0.001
"""Of the central training with Adam that trained weights come from."""


def private_images(data: str) -> tuple[Images, int]:
    """Return the images of all clients, and the number of classes."""
    loaded = fv.load_data(data)
    split = split_train(loaded.train, public_fraction=0.05, auxiliary_fraction=0.2, seed=0)
    return split.private, len(loaded.classes)


def victims_of(private: Images) -> Images:
    """Return the victims among the private images, in order."""
    return private.take(torch.randperm(len(private), generator=torch_stream(0, "quality"))[:VICTIMS])


def build(network: Network, weights: str, private: Images, classes: int) -> nn.Module:
    """Return the classifier that the server sends."""
    model = build_model(ModelSpec(network.model, private.shape, classes, network.norm))
    if weights == "initial":
        return model
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
    model.train()
    for step in range(STEPS):
        x, y = private.batch(torch.randint(len(private), (BATCH,), generator=torch_stream(0, "trained", step)))
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model


def write(cell: Cell, model: nn.Module, victims: Images, folder: Path) -> None:
    """Write one cell's file."""
    updates = [
        fv.client_update(model, victims.take(at), None, local_steps=cell.steps, learning_rate=LEARNING_RATE)[0]
        for at in torch.arange(len(victims)).split(cell.batch)
    ]
    content = {
        "weights": {name: value.clone() for name, value in exchanged(model).items()},
        "images": victims.floats(),
        "labels": victims.labels,
        "updates": [dict(update.tensors) for update in updates],
        "buffers": [dict(update.buffers) for update in updates],
    }
    part = folder / f"{cell}.part"
    torch.save(content, part)
    part.rename(folder / f"{cell}.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=[str(network) for network in NETWORKS])
    parser.add_argument("--folder", type=Path, default=CELLS)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    cells = dict.fromkeys(cell for cell, _ in work() if str(cell.network) in arguments.networks)
    models: dict[tuple[str, Network, str], nn.Module] = {}
    for cell in cells:
        if (arguments.folder / f"{cell}.pt").exists():
            continue
        private, classes = private_images(cell.data)
        key = (cell.data, cell.network, cell.weights)
        if key not in models:
            models[key] = build(cell.network, cell.weights, private, classes)
        write(cell, models[key], victims_of(private), arguments.folder)
        print(cell, flush=True)


if __name__ == "__main__":
    main()
