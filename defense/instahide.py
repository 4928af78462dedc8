"""InstaHide: mix with public images and flip signs at random."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fedveil.defense.base import DEFENSES, Defense, DefenseContext, PreparedDefense, Surrogate, TrainedOn, whole
from fedveil.fl.data.images import Images
from fedveil.fl.errors import SettingError


@DEFENSES.register("instahide")
@dataclass(frozen=True, kw_only=True)
class InstaHide(Defense[None]):
    """Mix each image with public ones, and flip the sign of each pixel at random, anew each time.

    InstaHide (Huang et al. 2020, arXiv 2010.02772), across data sets and of one private image:

    x' = 1/2 + s * (m - 1/2), m = share * x + the rest in public images by random shares, s = -1 or 1 per pixel, the same for
    all channels. So grey is the zero about which signs are flipped.

    The labels of public images are not used, so the label stays whole. Mixing several private images, as MixUp does and the
    paper's other half, makes labels that are shares of classes, which a client's training does not take. Mixing and flipping
    go on at test time, as in the paper.

    Images mixed so have been recovered before (Carlini et al. 2021, arXiv 2011.05315): signs fall away in the magnitudes,
    and public images can be told. The attacker here learns from its own draws.

    Attributes:
        share: of the image itself in the mix, above 0 and at most 1.
        others: public images in each mix, at least 1.
        flip: whether signs are flipped.
    """

    dial: ClassVar[str] = "share"

    share: float = 0.5
    others: int = 3
    flip: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise SettingError("instahide", "share", self.share, "it has to be above 0 and at most 1")
        whole("instahide", others=(self.others, 1))

    @property
    def trained_on(self) -> TrainedOn:
        """Public images are all that it holds."""
        return TrainedOn.PUBLIC

    def prepare(self, private: Images, context: DefenseContext, public: None, *, client: int) -> PreparedDefense:
        """Put it to work; the client's images are not mixed with each other."""
        return PreparedInstaHide(self, context.public)


@dataclass(frozen=True)
class PreparedInstaHide(PreparedDefense):
    """Mixes and flips: the same for all clients.

    Attributes:
        settings: say how.
        public: the images to mix with.
    """

    settings: InstaHide
    public: Images = field(repr=False)

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        """See `fedveil.fl.hooks.ClientHooks.data`."""
        count, others, share = len(x), self.settings.others, self.settings.share
        # All draws are rows of uniform numbers, one for each image.
        which = (torch.rand((count, others), generator=stream) * len(self.public)).long()
        shares = torch.rand((count, others), generator=stream).clamp_min(1e-6)
        shares = (1 - share) * shares / shares.sum(1, keepdim=True)
        public = (self.public.pixels[which].float() / 255.0 * shares.view(count, others, 1, 1, 1)).sum(1)
        mixed = share * x + public.to(x.device)
        if self.settings.flip:
            signs = torch.rand((count, 1, *x.shape[2:]), generator=stream).round() * 2 - 1
            mixed = 0.5 + signs.to(x.device) * (mixed - 0.5)
        return mixed.clamp(0, 1)

    def surrogate(self) -> Surrogate:
        """The public images and the law by which they are mixed in."""
        return Surrogate(data=self.data)
