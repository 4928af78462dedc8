"""A learnt inverse: undoes a data defence, trained afresh by the attacker on its auxiliary images.

The adversary that a minimax defence trains beside itself under-reports leakage (the defender has learnt to fool just that
one), so an attacker always starts from new weights. It is an attacker, never a bound: one that trains longer may do better,
which `LearntInverse.curve` tells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fedveil.attacks.inverse.muon import Muon
from fedveil.attacks.inverse.network import UNTOLD, InverseNetwork
from fedveil.attacks.inverse.variation import mirrors, varied
from fedveil.defense.base import above_zero, at_least
from fedveil.defense.devices import on_device
from fedveil.defense.seeded import seeded
from fedveil.fl.data.images import Images
from fedveil.fl.until_flat import Curve, hold_out, train_until_flat

Defend = Callable[[Tensor, Tensor | None, torch.Generator], Tensor]
"""What a defence makes of images (n, C, H, W) with labels (n,), with noise from the stream."""

BLIND = 0.3
"""In this part of the training the label is kept back, so that the inverse works without as well."""
MEASURED = 256
"""Defended draws of held-out images that the error is measured on, at least."""
CHUNK = 256
"""Images that pass the network together."""


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
        learning_rate: of `fedveil.attacks.inverse.muon.Muon`, above 0.
        width: of the network, at least 1 (see `fedveil.attacks.inverse.network.InverseNetwork`).
        artefacts: half of each batch carries white noise up to this standard deviation on the defended image, since the
            inverse is applied to imperfect gradient inversions as well as to perfect ones. More of it costs accuracy: 0.1
            leaves a tenth more error on what the learnt latent perturbation makes.
    """

    steps: int = 1500
    tolerance: float = 0.05
    batch_size: int = 64
    learning_rate: float = 0.02
    width: int = 32
    artefacts: float = 0.03

    def __post_init__(self) -> None:
        at_least("inverse", steps=(self.steps, 1), batch_size=(self.batch_size, 1), width=(self.width, 1))
        at_least("inverse", artefacts=(self.artefacts, 0), tolerance=(self.tolerance, 0))
        above_zero("inverse", learning_rate=self.learning_rate)


@dataclass(frozen=True, eq=False)
class Draws:
    """How an attacker comes by defended images to learn from: as many draws of an image as it will hold of a victim.

    Attributes:
        defend: the defence as it knows it.
        observations: R, draws of one image; 1 where the defence draws nothing, since all are the same then.
        local_steps: each draw is the mean of so many, since an update of several local steps shows their mean.
        artefacts: see `InverseTraining`.
    """

    defend: Defend
    observations: int
    local_steps: int
    artefacts: float

    def __call__(self, x: Tensor, y: Tensor, stream: torch.Generator, *, clean: bool = False) -> Tensor:
        """Return (R, n, C, H, W) draws of images (n, C, H, W) with labels (n,); ``clean`` ones carry no artefacts."""
        count = self.observations * self.local_steps
        with torch.no_grad():
            many = self.defend(x.repeat(count, 1, 1, 1), y.repeat(count), stream)
        draws = many.view(self.observations, self.local_steps, *x.shape).mean(dim=1)
        if clean or not self.artefacts:
            return draws
        level = self.artefacts * torch.rand((len(x), 1, 1, 1), generator=stream)
        level[::2] = 0
        return (draws + (level * torch.randn(draws.shape, generator=stream)).to(draws.device)).clamp(0, 1)


def draws_of(
    defend: Defend,
    auxiliary: Images,
    training: InverseTraining,
    *,
    observations: int,
    local_steps: int,
    device: torch.device,
    stream: torch.Generator,
) -> Draws:
    """Return how defended images are drawn; a defence that makes the same of an image twice is drawn from once."""
    x, y = auxiliary.batch(torch.arange(min(8, len(auxiliary))))
    with torch.no_grad():
        first, second = (defend(x.to(device), y.to(device), stream) for _ in range(2))
    if torch.equal(first, second):
        observations = local_steps = 1
    return Draws(defend, observations, local_steps, training.artefacts)


@dataclass(frozen=True, eq=False)
class LearntInverse:
    """From what was seen of images to estimates of them.

    Attributes:
        network: on the CPU, frozen.
        observations: R, draws of one image that it was trained for.
        classes: (m,) the classes that it has met; others are taken as untold.
        curve: of the training: the mean squared error on held-out auxiliary images, told their labels.
    """

    network: InverseNetwork
    observations: int
    classes: Tensor
    curve: Curve

    @torch.no_grad()
    def __call__(self, draws: Tensor, labels: Tensor | None) -> Tensor:
        """Return (n, C, H, W) in [0, 1] on the device of the draws.

        Args:
            draws: (R, n, C, H, W) in [0, 1], any number of them: all are used.
            labels: (n,) int64; None if they are not known.
        """
        network = on_device(self.network, draws.device)
        seen = gathered(draws, self.observations)
        told = torch.full((draws.shape[1],), UNTOLD) if labels is None else labels.cpu()
        told = torch.where(torch.isin(told, self.classes), told, UNTOLD).to(draws.device)
        parts = zip(seen.split(CHUNK, dim=1), told.split(CHUNK), strict=True)
        return torch.cat([network(some, known) for some, known in parts]).clamp(0, 1)


def gathered(draws: Tensor, observations: int) -> Tensor:
    """Return ``observations`` draws, (R, n, C, H, W): all that there are, or their mean where one is asked for.

    Raises:
        ValueError: another number is asked for than there are.
    """
    if observations == 1:
        return draws.mean(dim=0, keepdim=True)
    if len(draws) != observations:
        raise ValueError(f"trained for {observations} draws of an image, got {len(draws)}")
    return draws


def train_inverse(
    auxiliary: Images,
    draws: Draws,
    training: InverseTraining,
    *,
    classes: int,
    device: torch.device,
    stream: torch.Generator,
) -> LearntInverse:
    """Train A to minimise MSE(A(x'), x) over auxiliary x and fresh draws of x', until that is flat on held-out ones.

    Images are varied before they are defended, so that few of them tell much.

    Args:
        auxiliary: the attacker's images, a part of which is held out.
        draws: of defended images.
        training: see `InverseTraining`.
        classes: k.
        device: where to train.
        stream: the only source of randomness.
    """
    train, held_out = hold_out(auxiliary, stream)
    mirrored = mirrors(train)
    originals, labels, shown = measured_on(held_out, draws, device, stream)

    def build() -> InverseNetwork:
        return InverseNetwork(auxiliary.shape, classes=classes, width=training.width, several=draws.observations > 1)

    def loss(network: InverseNetwork) -> Tensor:
        x, y = train.batch(torch.randint(len(train), (training.batch_size,), generator=stream))
        x, y = varied(x, stream, mirrored=mirrored).to(device), y.to(device)
        told = torch.rand(len(x), generator=stream).to(device) >= BLIND
        return F.mse_loss(network(draws(x, y, stream), torch.where(told, y, UNTOLD)), x)

    def error(network: InverseNetwork) -> float:
        parts = zip(shown.split(CHUNK, dim=1), labels.split(CHUNK), originals.split(CHUNK), strict=True)
        wrong = sum(float((network(some, y).clamp(0, 1) - x).square().sum()) for some, y, x in parts)
        return wrong / originals.numel()

    trained = train_until_flat(
        seeded(build, stream).to(device),
        loss,
        error,
        steps=training.steps,
        tolerance=training.tolerance,
        learning_rate=training.learning_rate,
        optimizer=Muon,
    )
    return LearntInverse(trained.module.cpu(), draws.observations, auxiliary.labels.unique(), trained.curve)


def measured_on(
    held_out: Images, draws: Draws, device: torch.device, stream: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return held-out images (m, C, H, W), labels (m,) and draws (R, m, C, H, W) on the device: each image often enough."""
    times = -(-MEASURED // len(held_out))
    originals, labels = held_out.floats().repeat(times, 1, 1, 1), held_out.labels.repeat(times)
    originals, labels = originals.to(device), labels.to(device)
    chunks = zip(originals.split(CHUNK), labels.split(CHUNK), strict=True)
    shown = [draws(x, y, stream, clean=True) for x, y in chunks]
    return originals, labels, torch.cat(shown, dim=1)
