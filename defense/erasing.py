"""Random erasing, MIDRE (Tran et al. 2025, arXiv 2409.01062): no network ever sees a whole image. And its two controls."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedveil.defense.base import DEFENSES, Defense, DefenseContext, PreparedDefense, Surrogate, TrainedOn
from fedveil.fl.data.images import Images
from fedveil.fl.errors import SettingError

Fill = Literal["authors", "mean"]
AUTHORS = (0.7425, 0.728, 0.703)
"""What the authors fill with, in pixels of [0, 1]: they erase after normalising by a mean and a deviation of 0.5, and fill
ImageNet's mean (0.485, 0.456, 0.406) in there, which is a light grey."""


@dataclass(frozen=True, kw_only=True)
class Erasing(Defense[tuple[float, ...]]):
    """Part of each image is erased in training, anew each time; what a finished model is asked is left whole.

    Attributes:
        smallest: least share of the image that is erased, above 0.
        largest: greatest share, at least ``smallest`` and at most 1; the share is uniform between them.
        fill: what erased pixels show: ``authors``, a light grey (0.74, 0.73, 0.70; their mean in grey images), or ``mean``,
            the mean of the public images, per channel.
    """

    dial: ClassVar[str] = "largest"

    smallest: float = 0.1
    largest: float = 0.4
    fill: Fill = "authors"

    def __post_init__(self) -> None:
        if not 0 < self.smallest <= 1:
            raise SettingError(self.name, "smallest", self.smallest, "it has to be above 0 and at most 1")
        if not self.smallest <= self.largest <= 1:
            raise SettingError(
                self.name, "largest", self.largest, f"it has to be at least smallest ({self.smallest}) and at most 1"
            )
        if self.fill not in ("authors", "mean"):
            raise SettingError(self.name, "fill", repr(self.fill), "allowed: authors, mean")

    @abstractmethod
    def erased(self, shape: torch.Size, stream: torch.Generator) -> Tensor:
        """Return (n, 1, H, W) bool, which pixels go, for images of a shape (n, C, H, W)."""

    def sides(self, draws: Tensor, height: int, width: int) -> Tensor:
        """Return whole sides of squares of the drawn areas, at least a pixel and at most the image's shorter side.

        Args:
            draws: uniform in [0, 1).
            height: of the image.
            width: of the image.
        """
        areas = height * width * (self.smallest + (self.largest - self.smallest) * draws)
        return areas.sqrt().round().clamp(1, min(height, width)).long()

    @property
    def hooks(self) -> frozenset[str]:
        """See `Defense.hooks`."""
        return frozenset({"data"})

    @property
    def trained_on(self) -> TrainedOn:
        """The mean of public images is all that is ever learnt."""
        return TrainedOn.PUBLIC if self.fill == "mean" else TrainedOn.NOTHING

    def pretrain(self, context: DefenseContext) -> tuple[float, ...]:
        """Return the fill per channel."""
        if self.fill == "mean":
            return tuple(context.public.floats().mean((0, 2, 3)).tolist())
        return authors_fill(context.public.shape[0])

    def prepare(
        self, private: Images, context: DefenseContext, public: tuple[float, ...], *, client: int
    ) -> PreparedDefense:
        """Put it to work; the client's images teach it nothing."""
        return PreparedErasing(self, public)

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        """See `fedveil.fl.hooks.ClientHooks.data`, with the authors' fill."""
        return PreparedErasing(self, authors_fill(x.shape[1])).data(x, y, stream)

    def surrogate(self) -> Surrogate:
        """See `PreparedErasing.surrogate`, with the authors' fill."""

        def training(x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
            return PreparedErasing(self, authors_fill(x.shape[1])).training(x, y, stream)

        return Surrogate(data=training)


def authors_fill(channels: int) -> tuple[float, ...]:
    """Return `AUTHORS` for images of three channels, and its mean for each channel of others."""
    return AUTHORS if channels == len(AUTHORS) else (sum(AUTHORS) / len(AUTHORS),) * channels


@dataclass(frozen=True)
class PreparedErasing(PreparedDefense):
    """Erases: the same for all clients.

    Attributes:
        settings: say what.
        fill: per channel.
    """

    settings: Erasing
    fill: Sequence[float] = field(repr=False)

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        """See `fedveil.fl.hooks.ClientHooks.data`; at test time, without labels, nothing is erased."""
        return x if y is None else self.training(x, y, stream)

    def training(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        """Return what is trained on instead of ``x``, whether or not the labels are known."""
        mask = self.settings.erased(x.shape, stream).to(x.device)
        return torch.where(mask, torch.tensor(self.fill, device=x.device).view(1, -1, 1, 1), x)

    def surrogate(self) -> Surrogate:
        """The law by which images are erased: an attacker draws from it, and learns to fill in what several draws leave."""
        return Surrogate(data=self.training)


@DEFENSES.register("random_erasing")
@dataclass(frozen=True, kw_only=True)
class RandomErasing(Erasing):
    """Train on images with one square erased, each time another one.

    MIDRE: the square's area is uniform between two shares of the image and its place uniform over the image, drawn anew
    for each image and step, always. It was made against model inversion of a finished classifier: reconstructions then
    resemble erased images. In gradients every step shows another part, so that a few observations show all.

    The authors erase after the other augmentations; here random views come after the defence.
    """

    def erased(self, shape: torch.Size, stream: torch.Generator) -> Tensor:
        """See `Erasing.erased`."""
        count, _, height, width = shape
        draws = torch.rand((count, 3), generator=stream)
        sides = self.sides(draws[:, 0], height, width)
        tops = (draws[:, 1] * (height - sides + 1)).long()
        lefts = (draws[:, 2] * (width - sides + 1)).long()
        return _squares(tops, lefts, sides, height, width)


@DEFENSES.register("fixed_erasing")
@dataclass(frozen=True, kw_only=True)
class FixedErasing(Erasing):
    """A control of `random_erasing`: squares of the same areas, always in the middle.

    It separates the random place, which is to keep the utility, from the erasure. What lies in the middle is never seen.
    """

    def erased(self, shape: torch.Size, stream: torch.Generator) -> Tensor:
        """See `Erasing.erased`."""
        count, _, height, width = shape
        sides = self.sides(torch.rand((count, 1), generator=stream)[:, 0], height, width)
        return _squares((height - sides) // 2, (width - sides) // 2, sides, height, width)


@DEFENSES.register("pixel_dropout")
@dataclass(frozen=True, kw_only=True)
class PixelDropout(Erasing):
    """A control of `random_erasing`: as many pixels, each at random.

    It separates that part of an object is hidden from that there is less to see.
    """

    def erased(self, shape: torch.Size, stream: torch.Generator) -> Tensor:
        """See `Erasing.erased`; exactly as many pixels go as a square of the drawn area would hold."""
        count, _, height, width = shape
        sides = self.sides(torch.rand((count, 1), generator=stream)[:, 0], height, width)
        ranks = torch.rand((count, height * width), generator=stream).argsort(1).argsort(1)
        return (ranks < sides[:, None].square()).view(count, 1, height, width)


def _squares(tops: Tensor, lefts: Tensor, sides: Tensor, height: int, width: int) -> Tensor:
    """(n, 1, H, W), true in the square of each image: (n,) upper edges, left edges and sides in pixels."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    tops, lefts, sides = (values.view(-1, 1, 1, 1) for values in (tops, lefts, sides))
    down, right = rows - tops, columns - lefts
    return (down >= 0) & (down < sides) & (right >= 0) & (right < sides)
