"""What does a Flower client's answer leak? Flower's clients return a list of arrays: their weights after training."""

import copy

import numpy as np
import torch
from torch import nn

import fedveil as fv


def fit(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[np.ndarray]:
    """Train a client for one step, as a Flower NumPyClient.fit does, and return its state_dict as arrays."""
    client = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(client.parameters(), lr=0.01)
    nn.functional.cross_entropy(client(x), y).backward()
    optimizer.step()
    return [value.numpy() for value in client.state_dict().values()]


def main(steps: int = 300, figure: str = "flower_update.png") -> fv.AuditReport:
    """Audit the weights that a client returns after one step on two images."""
    data = fv.load_data("mni152", size=32)
    train, others = data.train, data.val
    x, y = train.floats()[[0, -1]], train.labels[[0, -1]]
    model = fv.build_model("convnet", image_shape=(1, 32, 32), classes=3)  # or any nn.Module
    arrays = fit(model, x, y)

    attacks = [fv.InvertingGradients(steps=steps)]
    report = fv.audit(model, arrays, images=x, labels=y, attacks=attacks, gallery=others.floats())
    print(
        f"mean squared error {report.worst('mse'):.4f}, found in the gallery {report.worst('identification_rate'):.0%}"
    )
    report.figure(figure)
    return report


if __name__ == "__main__":
    main()
