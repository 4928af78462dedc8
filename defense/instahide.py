"""InstaHide: mix with other images, public or of the same client, and flip signs at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from fedveil.defense.base import DEFENSES, Defense, DefenseContext, PreparedDefense, Surrogate, TrainedOn
from fedveil.defense.checks import whole
from fedveil.defense.partners import Partners
from fedveil.fl.data.images import Images
from fedveil.fl.errors import SettingError

Source = Literal["public", "private"]


@DEFENSES.register("instahide")
@dataclass(frozen=True, kw_only=True)
class InstaHide(Defense[None]):
    """Mix each image with others, and flip the sign of each pixel at random, anew each time.

    InstaHide (Huang et al. 2020, arXiv 2010.02772):

    x' = 1/2 + s * (m - 1/2), m = share * x + the rest in other images by random shares, s = -1 or 1 per pixel, the same for
    all channels. So grey is the zero about which signs are flipped.

    With ``source: public`` it is the paper's mixing across data sets, of one private image; the labels of public images are
    not used, so the label stays whole. With ``source: private`` it is that inside a data set: the others are the client's
    own, and the label is made of all labels by the same shares. Mixing and flipping go on at test time, as in the paper.

    The paper draws all shares, none above 0.65; here the image's own is set, since that is how much an attacker can see of
    it. Images are drawn with replacement.

    Images mixed so have been recovered before (Carlini et al. 2021, arXiv 2011.05315): signs fall away in the magnitudes,
    public images can be told, and private ones by what many mixes share. The attacker here learns from its own draws.

    Attributes:
        share: of the image itself in the mix, above 0 and at most 1.
        others: other images in each mix, at least 1; in the paper 3.
        source: ``public`` or ``private``, where the others are from.
        flip: whether signs are flipped.
    """

    dial: ClassVar[str] = "share"

    share: float = 0.5
    others: int = 3
    source: Source = "public"
    flip: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise SettingError("instahide", "share", self.share, "it has to be above 0 and at most 1")
        whole("instahide", others=(self.others, 1))
        if self.source not in get_args(Source):
            raise SettingError("instahide", "source", repr(self.source), f"allowed: {', '.join(get_args(Source))}")

    @property
    def hooks(self) -> frozenset[str]:
        """See `Defense.hooks`."""
        return frozenset({"data", "batch"} if self.mixes else {"data"})

    @property
    def trained_on(self) -> TrainedOn:
        """Public images are all that it holds, or else nothing is learnt."""
        return TrainedOn.NOTHING if self.mixes else TrainedOn.PUBLIC

    @property
    def mixes(self) -> bool:
        """See `Defense.mixes`."""
        return self.source == "private"

    def prepare(self, private: Images, context: DefenseContext, public: None, *, client: int) -> PreparedDefense:
        """Put it to work with the images that the source says."""
        if self.mixes:
            return PrivateInstaHide(self, Partners(private, context.model.classes))
        return PublicInstaHide(self, Partners(context.public, context.model.classes))

    def mixed(self, x: Tensor, partners: Partners, stream: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return what becomes of images (n, C, H, W), the shares (n, 1 + others) in the mixes, and the others' numbers."""
        which = partners.drawn(len(x), self.others, stream)
        drawn = torch.rand((len(x), self.others), generator=stream).clamp_min(1e-6)
        rest = (1 - self.share) * drawn / drawn.sum(1, keepdim=True)
        shares = torch.cat([torch.full_like(rest[:, :1], self.share), rest], dim=1)
        mixed = partners.mixed(x, shares, which)
        if self.flip:
            signs = torch.rand((len(x), 1, *x.shape[2:]), generator=stream).round() * 2 - 1
            mixed = 0.5 + signs.to(x.device) * (mixed - 0.5)
        return mixed.clamp(0, 1), shares, which


@dataclass(frozen=True)
class PublicInstaHide(PreparedDefense):
    """Mixes with public images and flips: the same for all clients.

    Attributes:
        settings: say how.
        partners: public images.
    """

    settings: InstaHide
    partners: Partners

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        """See `fedveil.fl.hooks.ClientHooks.data`."""
        return self.settings.mixed(x, self.partners, stream)[0]

    def surrogate(self) -> Surrogate:
        """The public images and the law by which they are mixed in."""
        return Surrogate(data=self.data)


@dataclass(frozen=True)
class PrivateInstaHide(PreparedDefense):
    """Mixes with images of the same client, labels as well, and flips.

    Attributes:
        settings: say how.
        partners: the client's images.
    """

    settings: InstaHide
    partners: Partners

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        """See `fedveil.fl.hooks.ClientHooks.data`; in training images wait for `batch`, which mixes their labels too."""
        return self.training(x, y, stream) if y is None else x

    def batch(self, model: nn.Module, x: Tensor, y: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """See `fedveil.fl.hooks.ClientHooks.batch`."""
        mixed, shares, which = self.settings.mixed(x, self.partners, stream)
        return mixed, self.partners.labels(y, shares, which)

    def training(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        """Return the images that are trained on instead of ``x``, whether or not the labels are known."""
        return self.settings.mixed(x, self.partners, stream)[0]

    def surrogate(self) -> Surrogate:
        """The law of mixing, with the attacker's own images for partners: neither the client's nor its shares are known."""
        return Surrogate(data=self.training, batch=self.batch)
