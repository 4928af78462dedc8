"""The looks of defences in figures: colour-blind safe colours with a marker each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from matplotlib.colors import to_rgb

# Okabe & Ito 2008, "Color universal design", without its yellow, which is too pale on white
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")


@dataclass(frozen=True)
class Look:
    """How one defence is drawn, the same way in the points and in the legend."""

    color: str
    marker: str


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Give each name its look, in alphabetical order, so that the order of trials does not matter."""
    return {
        name: Look(_COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)]) for i, name in enumerate(sorted(set(names)))
    }


def for_text(color: str) -> tuple[float, float, float]:
    """A darker shade of ``color``: what is bright enough for a marker is too pale for small letters."""
    red, green, blue = to_rgb(color)
    return 0.7 * red, 0.7 * green, 0.7 * blue
