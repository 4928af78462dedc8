"""What an attacker learns from: its own images, what the defence makes of them, and some of both that are held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedveil.defense.base import Rehearsal
from fedveil.defense.inverse.variation import varied
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.progress import doing
from fedveil.fl.until_flat import held_out, hold_out

Defend = Callable[[Tensor, Tensor | None, torch.Generator], Tensor]
"""What a defence makes of images (n, C, H, W) with labels (n,), with noise from the stream."""

Measured = tuple[Tensor, Tensor, Tensor]
"""Images (m, C, H, W), labels (m,) and draws (R, m, C, H, W) of what the defence makes of them, on the device."""

MEASURED = 256
"""Defended draws of held-out images that the error is measured on, at least."""
CHUNK = 256
"""Images that pass a network together."""
REHEARSALS = 4
"""Times that images are grouped anew, for a defence that makes one image of many."""
SHARE = 0.6
"""The part of the attacker's images that is in each rehearsal: which ones are with which has to change."""


class Lessons(Protocol):
    """Examples of a defence at work.

    Attributes:
        train: (m,) examples' originals.
        held_out: originals that are in none of them.
        observations: R, draws of one image that are shown.
        measured: held-out originals with what became of them.
    """

    train: Images
    held_out: Images
    observations: int
    measured: Measured

    def unlearnt(self) -> tuple[Images, Images]:
        """Return originals that nothing is learnt of, each once, and for each what a client would hold instead of it.

        Too few images to spare any are all learnt of, and returned all the same.
        """

    def batch(self, at: Tensor, stream: torch.Generator, *, mirrored: Sequence[int]) -> Measured:
        """Return the examples numbered ``at``, varied, with what becomes of them: images, labels, draws.

        Args:
            at: (b,) int64.
            stream: the only source of randomness.
            mirrored: axes along which images may be mirrored, see `fedveil.defense.inverse.variation.varied`.
        """


@dataclass(frozen=True, eq=False)
class Draws:
    """How an attacker comes by defended images to learn from: as many draws of an image as it will hold of a victim.

    Attributes:
        defend: the defence as it knows it.
        observations: R, draws of one image; 1 where the defence draws nothing, since all are the same then.
        local_steps: each draw is the mean of so many, since an update of several local steps shows their mean.
        artefacts: see `fedveil.defense.inverse.learnt.InverseTraining`.
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
        return draws if clean else with_artefacts(draws, self.artefacts, stream)


def draws_of(
    defend: Defend,
    auxiliary: Images,
    *,
    artefacts: float,
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
    return Draws(defend, observations, local_steps, artefacts)


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


def with_artefacts(draws: Tensor, most: float, stream: torch.Generator) -> Tensor:
    """Return draws (R, n, C, H, W), every second image of n with white noise of up to a standard deviation of ``most``."""
    if not most:
        return draws
    level = most * torch.rand((draws.shape[1], 1, 1, 1), generator=stream)
    level[::2] = 0
    return (draws + (level * torch.randn(draws.shape, generator=stream)).to(draws.device)).clamp(0, 1)


class DefendedLessons:
    """Of a defence with a law of single images: they are varied and then defended, anew each time.

    Args:
        auxiliary: the attacker's images, a part of which is held out.
        draws: of defended images.
        device: where.
        stream: decides what is held out, and draws what becomes of it.
    """

    def __init__(self, auxiliary: Images, draws: Draws, *, device: torch.device, stream: torch.Generator) -> None:
        self.train, self.held_out = hold_out(auxiliary, stream)
        self.observations = draws.observations
        self.measured = measured_on(self.held_out, draws, device, stream)
        self._draws = draws
        self._device = device

    def unlearnt(self) -> tuple[Images, Images]:
        """See `Lessons.unlearnt`: a client holds the originals, and the defence acts on them as it trains."""
        return self.held_out, self.held_out

    def batch(self, at: Tensor, stream: torch.Generator, *, mirrored: Sequence[int]) -> Measured:
        """See `Lessons.batch`."""
        x, y = self.train.batch(at)
        x, y = varied(x, stream, mirrored=mirrored).to(self._device), y.to(self._device)
        return x, y, self._draws(x, y, stream)


class RehearsedLessons:
    """Of a defence that makes one image of many: originals, and what became of them together with others.

    An original and what became of it are varied alike, afterwards: a defence that is learnt anew for each variation would
    cost too much.

    Args:
        originals: n.
        became: (n, C, H, W) uint8, what became of each.
        seen: (n,) bool, of which nothing is learnt; where that leaves nothing to learn or to measure, all are both.
        held_out: originals that are among those.
        artefacts: see `fedveil.defense.inverse.learnt.InverseTraining`.
        device: where.
    """

    def __init__(
        self,
        originals: Images,
        became: Tensor,
        seen: Tensor,
        *,
        held_out: Images,
        artefacts: float,
        device: torch.device,
    ) -> None:
        self.observations = 1
        self.held_out = held_out
        learnt = ~seen
        if not (bool(seen.any()) and bool(learnt.any())):
            seen = learnt = torch.ones_like(seen)
        self.train, self._became = originals.take(learnt.nonzero()[:, 0]), became[learnt].float() / 255
        self._measured, self._of_measured = originals.take(seen.nonzero()[:, 0]), became[seen]
        self.measured = (
            self._measured.floats().to(device),
            self._measured.labels.to(device),
            (self._of_measured.float() / 255).to(device)[None],
        )
        self._artefacts = artefacts
        self._device = device

    def pairs(self) -> tuple[Images, Tensor]:
        """Return the training originals, and what became of them, (m, C, H, W) in [0, 1]."""
        return self.train, self._became

    def unlearnt(self) -> tuple[Images, Images]:
        """See `Lessons.unlearnt`: a client holds what became of them."""
        distinct = {image.tobytes(): row for row, image in enumerate(self._measured.pixels.numpy())}
        at = torch.tensor(list(distinct.values()))
        return self._measured.take(at), Images(self._of_measured[at], self._measured.labels[at])

    def batch(self, at: Tensor, stream: torch.Generator, *, mirrored: Sequence[int]) -> Measured:
        """See `Lessons.batch`."""
        x, y = self.train.batch(at)
        channels = x.shape[1]
        both = varied(torch.cat([x, self._became[at]], dim=1), stream, mirrored=mirrored)
        seen = with_artefacts(both[None, :, channels:], self._artefacts, stream)
        return both[:, :channels].to(self._device), y.to(self._device), seen.to(self._device)


def rehearsed_lessons(
    auxiliary: Images,
    rehearse: Callable[[Images, torch.Generator], Rehearsal],
    *,
    artefacts: float,
    device: torch.device,
    stream: torch.Generator,
) -> RehearsedLessons:
    """Rehearse a defence that makes one image of many on sets of the attacker's images.

    Held-out originals are in the rehearsals, so that groups are as dense as a client's, but nothing is learnt of what became
    of them.

    Args:
        auxiliary: the attacker's images, a part of which is held out.
        rehearse: see `fedveil.defense.base.Surrogate.rehearse`.
        artefacts: see `fedveil.defense.inverse.learnt.InverseTraining`.
        device: where.
        stream: the only source of randomness.

    Raises:
        FedveilError: the defence keeps none of the images.
    """
    held = held_out(auxiliary, stream)
    if not bool(held.any()):
        held = torch.ones_like(held)  # too few to spare any: they are learnt from and measured on
    originals: list[Tensor] = []
    became: list[Tensor] = []
    for number in range(REHEARSALS):
        some = torch.randperm(len(auxiliary), generator=stream)[: max(1, round(SHARE * len(auxiliary)))]
        with doing(f"rehearsal {number + 1} of {REHEARSALS}"):
            found = rehearse(auxiliary.take(some), stream)
        originals.append(some[found.kept])
        became.append(found.trained.pixels)
    rows, pixels = torch.cat(originals), torch.cat(became)
    if len(rows) == 0:
        raise FedveilError("the attacker's images are too few for this defence: it keeps none of them")
    return RehearsedLessons(
        auxiliary.take(rows),
        pixels,
        held[rows],
        held_out=auxiliary.take(held.nonzero()[:, 0]),
        artefacts=artefacts,
        device=device,
    )
