"""How much does the gradient of your own model leak? Runs in seconds: python examples/audit_own_gradient.py"""

import torch
from torch import nn

import fedveil as fv


def main(steps: int = 300, figure: str = "own_gradient.png") -> fv.AuditReport:
    """Audit the gradient that a client computes on one image."""
    train = fv.load_data("mni152", size=32).train
    x, y = train.floats()[:1], train.labels[:1]

    # Your model, and the gradient that your client computes, by parameter name.
    model = nn.Sequential(nn.Conv2d(1, 16, 5, stride=2), nn.Sigmoid(), nn.Flatten(), nn.Linear(16 * 14 * 14, 3))
    nn.functional.cross_entropy(model(x), y).backward()
    gradient = {name: parameter.grad for name, parameter in model.named_parameters()}

    report = fv.audit(model, gradient, images=x, labels=y, attacks=[fv.InvertingGradients(steps=steps)])
    print(f"mean squared error {report.worst('mse'):.4f}, PSNR {report.worst('psnr'):.1f} dB")
    report.figure(figure)
    return report


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
