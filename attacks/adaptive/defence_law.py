"""What a data defence makes of images, as vectors: its mean for one image, and how it scatters around that.

Measured on auxiliary images, by passing them through the defence as the attacker knows it; private images and what was
observed of them play no part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedveil.attacks.adaptive.passes import Passes
from fedveil.attacks.adaptive.whitening import Whitening
from fedveil.attacks.base import Knowledge
from fedveil.fl.seeding import torch_stream

SCATTER_DRAWS = 4
"""Times that each image passes the defence around which its noise is measured."""
SHRINKAGES = (0.1, 1.0, 10.0, None)
"""Metrics to choose from, see `Whitening.of`."""
_CHUNK = 64
_ENTRIES = 2**25

Features = Callable[[Tensor], Tensor]
"""Images (n, C, H, W), on the device, to vectors (n, D)."""


@dataclass(frozen=True)
class Effort:
    """How much is drawn.

    Attributes:
        draws: times that each candidate passes the defence. With common noise a few do: the mean of m adds 1 / m to the
            variance of what was observed.
        images: auxiliary images around which the noise is measured, and as many more for the choice of the metric.
    """

    draws: int
    images: int


CHEAP = Effort(draws=8, images=256)
"""For features that cost nothing, such as pixels."""
DEAR = Effort(draws=4, images=64)
"""For gradients, each of which is a pass through the classifier and back."""


@dataclass(frozen=True, eq=False)
class DataLaw:
    """Compares what was observed of some images with what the defence would make of others.

    The noise that is common to all candidates shifts them all alike; that shift is measured on auxiliary images with the
    same noise, and taken off.

    Attributes:
        means: the mean features of what the defence makes of images, with noise that is common to all.
        observed_centre: (D,) mean features of auxiliary images, each with noise of its own.
        candidate_centre: (D,) the same with the common noise.
        metric: in which to compare.
    """

    means: Features
    observed_centre: Tensor
    candidate_centre: Tensor
    metric: Whitening

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        features: Features,
        label: int | None,
        passes: Passes,
        knowledge: Knowledge,
        *,
        effort: Effort,
        round: bool = False,
    ) -> DataLaw:
        """Measure it.

        Args:
            features: of images that passed the defence.
            label: of all images; None for a defence that does not look at it.
            passes: through the defence as the attacker knows it.
            knowledge: with auxiliary images.
            effort: how much to draw.
            round: the metric is the plain one. Otherwise that is chosen by which most of those auxiliary images are told
                apart around which the noise was not measured.
        """
        seed, device = knowledge.seed, knowledge.device
        known = knowledge.auxiliary_images()
        order = torch.randperm(len(known), generator=torch_stream(seed, "forward", "auxiliary"))
        images = known.take(order[: 2 * effort.images]).floats().to(device)

        means = mean_features(features, label, passes, draws=effort.draws)
        width = features(images[:1]).shape[1]
        rows = max(1, min(effort.images, _ENTRIES // (SCATTER_DRAWS * width), len(images) // 2))
        around, others = images[:rows], images[rows:] if len(images) > rows else images
        scattered = torch.cat(
            [
                torch.stack([features(x) for x in passes.own(chunk, label, f"scatter {at}", SCATTER_DRAWS)])
                for at, chunk in enumerate(around.split(_CHUNK))
            ],
            dim=1,
        )
        residuals = (scattered - scattered.mean(0)).flatten(0, 1)
        shown = torch.cat([means(chunk) for chunk in others.split(_CHUNK)])
        law = cls(means, scattered.mean((0, 1)), shown.mean(0), Whitening.of(residuals, shrinkage=None))
        if round:
            return law
        seen = torch.cat(
            [
                features(x)
                for at, chunk in enumerate(others.split(_CHUNK))
                for x in passes.own(chunk, label, f"seen {at}", 1)
            ]
        )
        metrics = [Whitening.of(residuals, shrinkage=shrinkage) for shrinkage in SHRINKAGES]
        ranks = [_mean_log_rank(law._between(metric, seen, shown)) for metric in metrics]
        return cls(means, law.observed_centre, law.candidate_centre, metrics[ranks.index(min(ranks))])

    def distances(self, observed: Tensor, candidates: Tensor) -> Tensor:
        """Return (V, c) squared distances of (V, D) observed features and candidate images (c, C, H, W)."""
        return self._between(self.metric, observed, self.means(candidates))

    def _between(self, metric: Whitening, observed: Tensor, shown: Tensor) -> Tensor:
        return metric.distances(observed - self.observed_centre, shown - self.candidate_centre)


def mean_features(features: Features, label: int | None, passes: Passes, *, draws: int) -> Features:
    """Return the mean features of what a defence makes of images, over ``draws`` whose noise all images share."""

    def means(images: Tensor) -> Tensor:
        return torch.stack([features(x) for x in passes.common(images, label, draws)]).mean(0)

    return means


def _mean_log_rank(distances: Tensor) -> float:
    """How far down the right candidate stands, on average: 0 where each is the nearest."""
    own = distances.diagonal()[:, None]
    return float((distances < own).sum(1).add(1).double().log().mean())
