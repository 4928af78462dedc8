"""A learnt inverse: undoes a data defence, trained afresh by the attacker on its auxiliary images.

The adversary that a minimax defence trains beside itself under-reports leakage (the defender has learnt to fool just that
one), so an attacker always starts from new weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fedveil.defense.base import above_zero, at_least
from fedveil.defense.modules import Inverse
from fedveil.defense.seeded import seeded
from fedveil.fl.data.images import Images


@dataclass(frozen=True)
class InverseTraining:
    """How an attacker trains its inverse.

    >>> import fedveil as fv
    >>> fv.InverseTraining(steps=800).width
    32


    Attributes:
        steps: Adam steps with a cosine schedule, at least 1.
        batch_size: auxiliary images per step, at least 1.
        learning_rate: at the start, above 0.
        width: of the network, at least 1 (see `fedveil.defense.modules.Inverse`).
        artefacts: half of each batch carries white noise up to this standard deviation on the defended image, since the
            inverse is applied to imperfect gradient inversions as well as to perfect ones.
    """

    steps: int = 500
    batch_size: int = 64
    learning_rate: float = 2e-3
    width: int = 32
    artefacts: float = 0.1

    def __post_init__(self) -> None:
        at_least("inverse", steps=(self.steps, 1), batch_size=(self.batch_size, 1), width=(self.width, 1))
        at_least("inverse", artefacts=(self.artefacts, 0))
        above_zero("inverse", learning_rate=self.learning_rate)


def train_inverse(
    auxiliary: Images,
    defend: Callable[[Tensor, Tensor | None, torch.Generator], Tensor],
    training: InverseTraining,
    *,
    device: torch.device,
    stream: torch.Generator,
) -> Inverse:
    """Train A to minimise MSE(A(x'), x) over auxiliary x and x' = ``defend``(x, y) with fresh noise for every batch.

    Returns:
        The inverse on ``device``, in evaluation mode.
    """
    inverse = seeded(lambda: Inverse(auxiliary.shape, training.width), stream).to(device)
    optimizer = torch.optim.Adam(inverse.parameters(), lr=training.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.steps)
    for _ in range(training.steps):
        x, y = auxiliary.batch(torch.randint(len(auxiliary), (training.batch_size,), generator=stream))
        x = x.to(device)
        with torch.no_grad():
            defended = defend(x, y.to(device), stream)
        level = training.artefacts * torch.rand((len(x), 1, 1, 1), generator=stream)
        level[::2] = 0
        defended = (defended + (level * torch.randn(x.shape, generator=stream)).to(device)).clamp(0, 1)
        optimizer.zero_grad(set_to_none=True)
        F.mse_loss(inverse(defended), x).backward()
        optimizer.step()
        schedule.step()
    return inverse.eval()
