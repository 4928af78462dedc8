"""Does your own defence hold against an attacker that knows it? Here: a block average, as a class of ten lines."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

import fedveil as fv


@dataclass(frozen=True, kw_only=True)
class BlockAverage(fv.Defense[None]):
    """Train on images whose blocks of ``side`` pixels are replaced by their mean."""

    name: ClassVar[str] = "block_average"
    side: int = 4

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        """Return what the client trains on instead of ``x``."""
        return F.interpolate(F.avg_pool2d(x, self.side), scale_factor=self.side)


def main(steps: int = 300, figure: str = "own_defense.png") -> fv.AuditReport:
    """Audit one image behind the defence: inverted plainly, and by an attacker that undoes the defence."""
    data = fv.load_data("mni152", size=32)
    x, y = data.train.floats()[:1], data.train.labels[:1]
    model = fv.build_model("lenet", image_shape=(1, 32, 32), classes=3)

    defense = BlockAverage(side=4)
    update, trained = fv.client_update(model, x, y, defense=defense)
    plain = fv.InvertingGradients(steps=steps)
    attacks = [plain, fv.Adaptive(inversion=plain, inverse=fv.InverseTraining(steps=steps))]
    given = {"images": x, "labels": y, "trained_images": trained, "auxiliary": data.val}
    report = fv.audit(model, update, defense=defense, attacks=attacks, **given)
    print(f"mean squared error {report.worst('mse'):.4f} (what was trained on: {report.records[0].trained_mse:.4f})")
    report.figure(figure)
    return report


if __name__ == "__main__":
    main()
