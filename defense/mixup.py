"""MixUp: train on mixes of two images, with labels mixed alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from scipy.special import betaincinv
from torch import Tensor, nn

from fedveil.defense.base import DEFENSES, Defense, DefenseContext, PreparedDefense, Surrogate, TrainedOn
from fedveil.defense.checks import above_zero
from fedveil.defense.partners import Partners
from fedveil.fl.data.images import Images


@DEFENSES.register("mixup")
@dataclass(frozen=True, kw_only=True)
class MixUp(Defense[None]):
    """Train on mixes of two images, whose labels are shares of both classes, drawn anew each time.

    MixUp (Zhang et al. 2018, arXiv 1710.09412, eq. 1): x' = l x + (1 - l) x_p, y' = l y + (1 - l) y_p with
    l ~ Beta(alpha, alpha). It was made against overfitting; as a defence of gradients it is measured by Huang et al. 2021
    (arXiv 2112.00059). Images that a finished model is asked about stay as they are.

    It departs from the paper in two details. The partner is drawn from all of the client's images instead of the batch. And
    l is the larger of l and 1 - l, as in MixMatch (Berthelot et al. 2019, arXiv 1905.02249, eq. 8 and 9): partners are drawn
    evenly, so the pairs are the same, and which of the two goes by the image's number is a name. What an audit says of a
    victim is then of those mixes that show most of it.

    Attributes:
        alpha: above 0; towards 0 hardly anything is mixed, at 1 all shares are equally likely, beyond that even ones are.
    """

    dial: ClassVar[str] = "alpha"

    alpha: float = 1.0

    def __post_init__(self) -> None:
        above_zero("mixup", alpha=self.alpha)

    @property
    def hooks(self) -> frozenset[str]:
        """See `Defense.hooks`."""
        return frozenset({"batch"})

    @property
    def trained_on(self) -> TrainedOn:
        """Nothing is learnt."""
        return TrainedOn.NOTHING

    @property
    def mixes(self) -> bool:
        """See `Defense.mixes`."""
        return True

    def prepare(self, private: Images, context: DefenseContext, public: None, *, client: int) -> PreparedDefense:
        """Put it to work with the client's images for partners."""
        return PreparedMixUp(self, Partners(private, context.model.classes))

    def shares(self, count: int, stream: torch.Generator) -> Tensor:
        """Return (n, 2) shares of the image and of its partner, the image's at least a half."""
        # By the inverse of the distribution, since a Beta variate itself is drawn with a varying number of draws.
        uniform = torch.rand((count, 1), generator=stream).double()
        own = torch.from_numpy(betaincinv(self.alpha, self.alpha, uniform.numpy()))
        own = torch.maximum(own, 1 - own).float()
        return torch.cat([own, 1 - own], dim=1)


@dataclass(frozen=True)
class PreparedMixUp(PreparedDefense):
    """MixUp at work.

    Attributes:
        settings: say how.
        partners: to mix with.
    """

    settings: MixUp
    partners: Partners

    def batch(self, model: nn.Module, x: Tensor, y: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """See `fedveil.fl.hooks.ClientHooks.batch`."""
        shares, which = self._drawn(len(x), stream)
        return self.partners.mixed(x, shares, which), self.partners.labels(y, shares, which)

    def training(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        """Return the images that are trained on instead of ``x``, whether or not the labels are known."""
        return self.partners.mixed(x, *self._drawn(len(x), stream))

    def _drawn(self, count: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.settings.shares(count, stream), self.partners.drawn(count, 1, stream)

    def surrogate(self) -> Surrogate:
        """The law of mixing, with the attacker's own images for partners: neither the client's nor its shares are known."""
        return Surrogate(data=self.training, batch=self.batch)
