"""What breaching (Geiping et al.) ships as ``modern``: Inverting Gradients with a later optimiser and colour prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedveil.attacks.base import ATTACKS
from fedveil.attacks.engine.distances import cosine_distance
from fedveil.attacks.matching.attack import Found, GradientMatching
from fedveil.attacks.matching.match import Match
from fedveil.attacks.matching.starts import Start
from fedveil.attacks.optimizers import Adam
from fedveil.attacks.presets.features import with_features
from fedveil.attacks.priors import TotalVariation
from fedveil.attacks.target.smoothness import Suits
from fedveil.defense.checks import above_zero, at_least


@ATTACKS.register("modern")
@dataclass(frozen=True, kw_only=True)
class Modern(GradientMatching):
    """Cosine distance, last-layer features, isotropic total variation of all colours together, signed Adam.

    The start is a small random tile, repeated; the rate of Adam rises over the first fiftieth of the steps before it falls
    along half a cosine. It departs from the package's configuration in four details. The total variation is of images in
    [0, 1]. The rise is shorter (50 of 24,000 steps there). Signs are hard, where the package lets Adam see tanh(s g) / s
    with s falling from 1 to 0: within a few hundred steps hard ones come further. The prior on the last layer's features is
    a part of the distance (see `FeatureDistance`), relative to their size; it serves batches and replayed steps too, and
    takes no pass of its own. So much total variation suits trained networks, whose updates tell less.

    >>> import fedveil as fv
    >>> fv.Modern(steps=100).start
    'patterned'

    Attributes:
        tv: weight of the total variation for one image, at least 0. Of B images an update tells less, and the weight is B
            times as large, which was better on auxiliary images behind trained networks.
        learning_rate: of Adam, in pixel units, above 0.
        features: weight of the last layer's features for one image, at least 0. Of B images they tell only means, so that
            their weight is a B-th of it. They are left out where the update lacks that layer.
    """

    name: ClassVar[str] = "modern"
    suits: ClassVar[Suits] = "bent"
    tv: float = 0.1
    start: Start = "patterned"
    learning_rate: float = 0.1
    features: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(self.name, learning_rate=self.learning_rate)
        at_least(self.name, features=(self.features, 0))

    def minimise(self, match: Match, start: Tensor) -> Found:
        """See `GradientMatching`."""
        prior = TotalVariation(self.tv * start.shape[1], isotropic=True, opponents=start.shape[2] == 3)
        distance = with_features(match.problems[0], cosine_distance, self.features / start.shape[1])
        adam = Adam(self.steps, self.learning_rate, warmup=self.steps // 50)
        return Found(*adam.minimise(match.objective(distance=distance, priors=[prior]), start))
