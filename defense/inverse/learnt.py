"""A learnt inverse: undoes a data defence, trained afresh by the attacker on its auxiliary images.

The adversary that a minimax defence trains beside itself under-reports leakage (the defender has learnt to fool just that
one), so an attacker always starts from new weights. It is an attacker, never a bound: one that trains longer may do better,
which `LearntInverse.curve` tells.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fedveil.defense.checks import MOST_STEPS, above_zero, at_least, whole
from fedveil.defense.devices import on_device
from fedveil.defense.inverse.lessons import CHUNK, Lessons, gathered
from fedveil.defense.inverse.muon import Muon
from fedveil.defense.inverse.network import UNTOLD, InverseNetwork
from fedveil.defense.inverse.variation import mirrors
from fedveil.defense.seeded import seeded
from fedveil.fl.until_flat import Curve, train_until_flat

BLIND = 0.3
"""In this part of the training the label is kept back, so that the inverse works without as well."""


@dataclass(frozen=True)
class InverseTraining:
    """How an attacker trains its inverse, and its classifier of defended images.

    >>> import fedveil as fv
    >>> fv.InverseTraining(steps=800).width
    32


    Attributes:
        steps: at most so many, at least 1; training ends before if the error on held-out auxiliary images is flat.
        tolerance: flat is an error that the last doubling of the steps brought down by less than this, relative; at
            least 0.
        batch_size: auxiliary images per step, at least 1.
        learning_rate: of `fedveil.defense.inverse.muon.Muon`, above 0.
        width: of both networks, at least 1 (see `fedveil.defense.inverse.network.InverseNetwork`).
        artefacts: half of each batch carries white noise up to this standard deviation on the defended image, since the
            inverse is applied to imperfect gradient inversions as well as to perfect ones. More of it costs accuracy on the
            latter.
    """

    steps: int = 1500
    tolerance: float = 0.05
    batch_size: int = 64
    learning_rate: float = 0.02
    width: int = 32
    artefacts: float = 0.03

    def __post_init__(self) -> None:
        whole("inverse", most=MOST_STEPS, steps=(self.steps, 1))
        whole("inverse", most=65_536, batch_size=(self.batch_size, 1))
        whole("inverse", most=1024, width=(self.width, 1))
        at_least("inverse", artefacts=(self.artefacts, 0), tolerance=(self.tolerance, 0))
        above_zero("inverse", learning_rate=self.learning_rate)


@dataclass(frozen=True, eq=False)
class LearntInverse:
    """From what was seen of images to estimates of them.

    Attributes:
        network: on the CPU, frozen.
        observations: R, draws of one image that it was trained for.
        classes: (m,) the classes that it has met; others are taken as untold.
        curve: of the training: the mean squared error on held-out auxiliary images, told their labels.
        plain: the same error of what was seen as it is, the mean over draws. Where the network is no better, as after too
            few steps against a weak defence, that is what this returns.
    """

    network: InverseNetwork
    observations: int
    classes: Tensor
    curve: Curve
    plain: float

    @property
    def error(self) -> float:
        """The mean squared error on held-out auxiliary images, per value in units of [0, 1]."""
        return min(self.curve.error, self.plain)

    @torch.no_grad()
    def __call__(self, draws: Tensor, labels: Tensor | None) -> Tensor:
        """Return (n, C, H, W) in [0, 1] on the device of the draws.

        Args:
            draws: (R, n, C, H, W) in [0, 1], any number of them: all are used.
            labels: (n,) int64; None if they are not known.
        """
        seen = gathered(draws, self.observations)
        if self.plain <= self.curve.error:
            return seen.mean(dim=0)
        network = on_device(self.network, draws.device)
        told = torch.full((draws.shape[1],), UNTOLD) if labels is None else labels.cpu()
        told = torch.where(torch.isin(told, self.classes), told, UNTOLD).to(draws.device)
        parts = zip(seen.split(CHUNK, dim=1), told.split(CHUNK), strict=True)
        return torch.cat([network(some, known) for some, known in parts]).clamp(0, 1)


def train_inverse(
    lessons: Lessons,
    training: InverseTraining,
    *,
    classes: int,
    device: torch.device,
    stream: torch.Generator,
    begin: InverseNetwork | None = None,
) -> LearntInverse:
    """Train A to minimise MSE(A(x'), x) over auxiliary x and what becomes of them, until that is flat on held-out ones.

    Args:
        lessons: the attacker's images, and what the defence makes of them.
        training: see `InverseTraining`.
        classes: k.
        device: where to train.
        stream: the only source of randomness.
        begin: a network to go on from, which stays as it is; None for new weights.
    """
    mirrored = mirrors(lessons.train)
    originals, labels, shown = lessons.measured

    def build() -> InverseNetwork:
        return InverseNetwork(
            lessons.train.shape, classes=classes, width=training.width, several=lessons.observations > 1
        )

    def loss(network: InverseNetwork) -> Tensor:
        at = torch.randint(len(lessons.train), (training.batch_size,), generator=stream)
        x, y, seen = lessons.batch(at, stream, mirrored=mirrored)
        told = torch.rand(len(x), generator=stream).to(device) >= BLIND
        return F.mse_loss(network(seen, torch.where(told, y, UNTOLD)), x)

    def error(network: InverseNetwork) -> float:
        parts = zip(shown.split(CHUNK, dim=1), labels.split(CHUNK), originals.split(CHUNK), strict=True)
        wrong = sum(float((network(some, y).clamp(0, 1) - x).square().sum()) for some, y, x in parts)
        return wrong / originals.numel()

    trained = train_until_flat(
        (copy.deepcopy(begin).train().requires_grad_(True) if begin is not None else seeded(build, stream)).to(device),
        loss,
        error,
        steps=training.steps,
        tolerance=training.tolerance,
        learning_rate=training.learning_rate,
        optimizer=Muon,
    )
    met = lessons.train.labels.unique()
    plain = float(F.mse_loss(shown.mean(dim=0), originals))
    return LearntInverse(trained.module.cpu(), lessons.observations, met, trained.curve, plain)
