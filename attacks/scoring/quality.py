"""How well the judge of classes reads images that nobody has touched: without that, its verdicts say nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedveil.fl.errors import FedveilError

MARGIN = 0.1
"""Share of the way from chance to perfection that a fit judge has surely gone."""

_Z = 1.959964  # 95 %, both sides


@dataclass(frozen=True)
class JudgeQuality:
    """The judge on untouched private originals.

    Attributes:
        accuracy: balanced accuracy, the mean over classes of the share that is read rightly.
        low: lower end of its 95 % interval.
        chance: of a guess, 1 / k.
        constant: what one answer to everything reaches, 1 / m with m classes among the images; all of it with one class.
    """

    accuracy: float
    low: float
    chance: float
    constant: float = 0.0

    @classmethod
    def of(cls, labels: Sequence[int], read: Sequence[int], *, classes: int) -> JudgeQuality:
        """Compare the classes ``read`` with the true ``labels``.

        The interval is Wilson's (1927) for as many images as would give an accuracy that precise without classes:
        m^2 / sum(1 / n_c) over the m classes present, which is the number of images where classes are equally large.
        It stays wide where few images were all read rightly.

        Raises:
            FedveilError: there are no labels.
        """
        if not labels:
            raise FedveilError("judge: its accuracy needs at least one untouched image, got none")
        right: dict[int, list[bool]] = {}
        for label, found in zip(labels, read, strict=True):
            right.setdefault(label, []).append(label == found)
        present = len(right)
        accuracy = sum(sum(own) / len(own) for own in right.values()) / present
        n = present**2 / sum(1 / len(own) for own in right.values())
        spread = _Z * (accuracy * (1 - accuracy) / n + _Z**2 / (4 * n**2)) ** 0.5
        low = (accuracy + _Z**2 / (2 * n) - spread) / (1 + _Z**2 / n)
        return cls(accuracy, min(max(0.0, low), accuracy), 1 / classes, 1 / present)

    @property
    def fit(self) -> bool:
        """Whether it reads classes clearly better than chance: `MARGIN` of the way to 1 at the interval's lower end.

        A few victims of one class say nothing, however rightly they are read: a judge that knows one answer does as well.
        """
        guess = max(self.chance, self.constant)
        return self.low > guess + MARGIN * (1 - guess)

    @property
    def classes(self) -> int:
        """k."""
        return round(1 / self.chance)
