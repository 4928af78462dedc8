"""The look that all figures share: colour-blind safe colours with a marker each, and the way to disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

INK = "#1f2328"
MUTED = "#6e7781"
FAINT = "#d8dee4"

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


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure in inches that no global state knows of."""
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` to ``path``, in the format of its suffix, and make the folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
