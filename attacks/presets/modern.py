"""What breaching (Geiping et al.) ships as ``modern``: Inverting Gradients with a later optimiser and colour prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedveil.attacks.base import ATTACKS
from fedveil.attacks.gradient_matching import Found, GradientMatching
from fedveil.attacks.match import Match
from fedveil.attacks.optimizers import Adam
from fedveil.attacks.priors import TotalVariation
from fedveil.attacks.starts import Start
from fedveil.defense.base import above_zero


@ATTACKS.register("modern")
@dataclass(frozen=True, kw_only=True)
class Modern(GradientMatching):
    """Cosine distance, isotropic total variation that lets edges of all colours fall together, softly signed Adam.

    The start is a small random tile, repeated; Adam sees tanh(s g) / s, where s falls from 1 to 0, and its rate rises over
    the first fiftieth of the steps before it falls along half a cosine. It departs from the package's configuration in that
    the total variation is of images in [0, 1], in the length of the rise (50 of 24,000 steps there), and in having no prior
    on the last layer's features. So much total variation suits trained networks, whose updates tell less.

    >>> import fedveil as fv
    >>> fv.Modern(steps=100).start
    'patterned'

    Attributes:
        learning_rate: of Adam, in pixel units, above 0.
    """

    name: ClassVar[str] = "modern"
    tv: float = 0.1
    start: Start = "patterned"
    learning_rate: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(self.name, learning_rate=self.learning_rate)

    def minimise(self, match: Match, start: Tensor) -> Found:
        """See `GradientMatching`."""
        prior = TotalVariation(self.tv, isotropic=True, opponents=start.shape[2] == 3)
        adam = Adam(self.steps, self.learning_rate, signs="soft", warmup=self.steps // 50)
        return Found(*adam.minimise(match.objective(priors=[prior]), start))
