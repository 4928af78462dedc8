"""What is wrong with an attacker's reconstructions, learnt on its own victims, and set right in those of the clients.

A reconstruction errs by a rule: noise that the inversion takes for detail, a brightness that no gradient tells, edges that a
prior has smoothed, an inverse of the defence that is shown inverted images where it has learnt from true ones. An attacker
with images of its own can look at this rule: it attacks them as it attacks the client, and knows the truth. The best linear
estimate in a few bands of spatial frequency (Wiener 1949, with powers measured instead of assumed) is then

    x_b = mean_b + a_b (r_b - mean_b - bias_b) + c_b (mean_b - centre_b)

with r the reconstruction, mean the mean image of the class, bias the mean of r - mean, centre the mean of these means, b a
band; c makes up for classes whose images are wrong by other amounts. Where a reconstruction tells nothing a_b is 0, and the
guess of the class mean is left: no attacker need do worse than that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedveil.attacks.matching.spectrum import cosines
from fedveil.fl.data.images import Images

BANDS = 6
"""Of spatial frequency, beside the mean; each is as wide as the others by the logarithm."""
RIDGE = 1e-3
"""Share of a band's power by which its gain is held back."""
FAINT = 1e-5
"""Share of it that holds back how far the class's mean is corrected."""
CLEAR = 2.0
"""Standard errors by which it has to bring down the own victims' error."""
LEAST = 4
"""Own victims below which nothing is learnt."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Sets reconstructions right.

    Attributes:
        means: (k + 1, C, H, W) of other images of each class, and of all.
        centre: (C, H, W) mean over the own victims of their classes' means.
        bias: (C, H, W) mean of what reconstructions have beyond their class's mean.
        gains: (2, bands) a_b and c_b.
    """

    means: Tensor
    centre: Tensor
    bias: Tensor
    gains: Tensor

    @classmethod
    def of(cls, found: Tensor, labels: Tensor, originals: Tensor, others: Images) -> Calibration | None:
        """Learn it, or return None where it is not clearly a gain: over victims that are left out one at a time, by `CLEAR`.

        Args:
            found: (n, C, H, W) reconstructions of the attacker's own victims.
            labels: (n,) the classes that these were made with.
            originals: (n, C, H, W) the images.
            others: images of the attacker's that are not among these. Means that hold the own victims would look closer to
                them than they are to anybody's.
        """
        if len(found) < LEAST or not len(others):
            return None
        means = class_means(others)
        whole = torch.arange(len(found))
        left_out = [cls._fitted(found[whole != at], labels[whole != at], originals[whole != at], means) for at in whole]
        right = torch.cat([fit(found[at : at + 1], labels[at : at + 1]) for at, fit in enumerate(left_out)])
        gains = ((found - originals).square() - (right - originals).square()).flatten(1).mean(1)
        if not gains.mean() > CLEAR * gains.std() / len(gains) ** 0.5:
            return None
        return cls._fitted(found, labels, originals, means)

    @classmethod
    def _fitted(cls, found: Tensor, labels: Tensor, originals: Tensor, means: Tensor) -> Calibration:
        own = means[known_class(labels, means)]
        centre, bias = own.mean(0), (found - own).mean(0)
        band = _bands(*found.shape[-2:])

        def sums(one: Tensor, other: Tensor) -> Tensor:
            return torch.zeros(BANDS + 1).index_add(0, band, (one * other).sum((0, 1)).flatten())

        seen, usual, wanted = _spectrum(found - own - bias), _spectrum(own - centre), _spectrum(originals - own)
        # Where all victims are of one class there is nothing that the second could be learnt from.
        power, shared, classes = sums(seen, seen), sums(seen, usual), sums(usual, usual)
        rows = [torch.stack([(1 + RIDGE) * power, shared]), torch.stack([shared, classes + FAINT * power])]
        equations = torch.stack(rows).permute(2, 0, 1)
        answers = torch.stack([sums(seen, wanted), sums(usual, wanted)], dim=1)
        floor = 1e-12 * torch.eye(2)
        return cls(means, centre, bias, torch.linalg.solve(equations + floor, answers).T)

    def __call__(self, found: Tensor, labels: Tensor) -> Tensor:
        """Return reconstructions (n, C, H, W) in [0, 1] set right, given the classes (n,) that they were made with."""
        own = self.means[known_class(labels, self.means)]
        height, width = found.shape[-2:]
        gains = self.gains[:, _bands(height, width)].view(2, height, width)
        seen, usual = _spectrum(found - own - self.bias), _spectrum(own - self.centre)
        return (own + _image(gains[0] * seen + gains[1] * usual)).clamp(0, 1)


def class_means(known: Images) -> Tensor:
    """Return the mean image of each class and, last, of all, (k + 1, C, H, W); a class without images has that of all."""
    images, labels = known.floats(), known.labels
    everything = images.mean(0)
    classes = range(int(labels.max()) + 1)
    return torch.stack(
        [*(images[labels == c].mean(0) if (labels == c).any() else everything for c in classes), everything]
    )


def known_class(labels: Tensor, means: Tensor) -> Tensor:
    """Return the row of `class_means` for each class."""
    return torch.where(labels < len(means) - 1, labels, len(means) - 1)


def _spectrum(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    return cosines(height).to(images) @ images @ cosines(width).to(images).T


def _image(spectrum: Tensor) -> Tensor:
    height, width = spectrum.shape[-2:]
    return cosines(height).to(spectrum).T @ spectrum @ cosines(width).to(spectrum)


def _bands(height: int, width: int) -> Tensor:
    """(H * W,) the band of each frequency: 0 for the mean alone, then 1 to `BANDS`."""
    radius = torch.hypot(torch.arange(height)[:, None] / height, torch.arange(width)[None] / width).flatten()
    lowest = 1 / max(height, width)
    place = (radius / lowest).clamp_min(1).log() / math.log(math.sqrt(2) / lowest) * BANDS
    return torch.where(radius == 0, 0, 1 + place.long().clamp(max=BANDS - 1))
