"""What does a client that trains with Opacus leak? DP-SGD clips each image's gradient and adds noise to their sum."""

import copy

import torch
from opacus import PrivacyEngine
from torch.utils.data import DataLoader, TensorDataset

import fedveil as fv

RATE = 0.01


def train(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, noise: float) -> dict[str, torch.Tensor]:
    """Return the weights after one step of DP-SGD, as a client of any federation sends them."""
    client, seeded = copy.deepcopy(model).train(), torch.Generator().manual_seed(0)
    sgd, loader = torch.optim.SGD(client.parameters(), lr=RATE), DataLoader(TensorDataset(x, y), batch_size=len(x))
    dp = {"noise_multiplier": noise, "max_grad_norm": 1.0, "poisson_sampling": False, "noise_generator": seeded}
    private, optimizer, batches = PrivacyEngine().make_private(module=client, optimizer=sgd, data_loader=loader, **dp)
    for images, labels in batches:
        torch.nn.functional.cross_entropy(private(images), labels).backward()
        optimizer.step()
    return client.state_dict()


def main(steps: int = 300, figure: str = "opacus_update.png") -> fv.AuditReport:
    """Attack the update of one image, without noise and with; fv.LearningToInvert, which learns the noise, comes further."""
    images = fv.load_data("mni152", size=32).train.take([40])
    model = fv.build_model("lenet", image_shape=(1, 32, 32), classes=3)  # or any nn.Module
    for noise in (0.0, 0.1):
        update = fv.update_between(model, train(model, images.floats(), images.labels, noise), learning_rate=RATE)
        report = fv.audit(model, update, images=images, attacks=[fv.DeepLeakage(steps=steps)])
        print(f"noise {noise}: mean squared error {report.worst('mse'):.4f}; {fv.diagnose(model, update).verdict}")
    report.figure(figure)
    return report


if __name__ == "__main__":
    main()
