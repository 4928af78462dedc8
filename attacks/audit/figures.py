"""Pictures of what an attacker rebuilds, and the look that all figures share.

matplotlib takes seconds to load and workers never draw, so it is imported where something is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from fedveil.attacks.scoring.metrics import check_images, mse

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1f2328"
MUTED = "#6e7781"
FAINT = "#d8dee4"
_LETTERS = 17
"""Of a caption, that fit the width of an image."""


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure in inches that no global state knows of."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` to ``path``, in the format of its suffix, and make the folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)


def mse_text(error: float) -> str:
    """Four decimals; one significant digit where those would read as an exact copy, and a plain 0 for one."""
    return f"{error:.4f}" if error >= 5e-5 else f"{error:.0e}" if error > 0 else "0"


def draw_reconstructions(
    originals: Tensor | None,
    trained: Tensor | None,
    reconstructions: Mapping[str, Tensor],
    captions: Sequence[str] | None = None,
) -> Figure:
    """Return a figure with the rows original / what the client trained on / one per attack, and victims as columns.

    Args:
        originals: (n, C, H, W) in [0, 1], C is 1 or 3; None leaves out the row and the errors.
        trained: (n, C, H, W) in [0, 1], what the client trained on, in the originals' order; None leaves out the row.
        reconstructions: by attack, (n, C, H, W) in [0, 1], already matched to the originals.
        captions: one per victim, written above its column.

    Raises:
        FedveilError: the shapes differ, or images leave [0, 1].
    """
    rows = {} if trained is None else {"what the client\ntrained on": trained}
    rows |= {f"attack:\n{name.replace('_', ' ')}": images for name, images in reconstructions.items()}
    return draw_rows(originals, rows, captions)


def draw_rows(originals: Tensor | None, others: Mapping[str, Tensor], captions: Sequence[str] | None = None) -> Figure:
    """Return a figure with the originals in its first row and one row per entry of ``others``, by title.

    Args:
        originals: (n, C, H, W) in [0, 1]; None leaves out that row and the errors.
        others: (n, C, H, W) in [0, 1] each; every image gets its MSE to the original.
        captions: one per column; long ones are wrapped, and cut after two lines.

    Raises:
        FedveilError: the shapes differ, or images leave [0, 1].
    """
    captions = captions and ["\n".join(wrap(caption, _LETTERS, max_lines=2, placeholder=" …")) for caption in captions]
    rows = others if originals is None else {"original": originals, **others}
    # first of all, because it checks the shapes
    errors = {} if originals is None else {title: mse(images, originals).tolist() for title, images in others.items()}
    columns = max(map(len, rows.values()))
    # inches: one image with its caption, and margins that hold the titles
    cell, gap, below = 1.25, 0.06, 0.05 if originals is None else 0.28
    left = 0.25 + 0.078 * max(len(part) for title in rows for part in title.splitlines())
    top = 0.2 + 0.15 * max(1 + caption.count("\n") for caption in captions) if captions else 0.15
    lefts = [left + column * (cell + gap) for column in range(columns)]
    width = lefts[-1] + cell + 0.15
    height = (cell + below) * len(rows) + top + 0.1
    figure = new_figure(width, height)
    # One for all: each axes of its own takes longer to draw than its image.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for row, (title, images) in enumerate(rows.items()):
        check_images(title, images)
        bottom = height - top - cell - row * (cell + below)
        axes.text(left - 0.1, bottom + cell / 2, title, ha="right", va="center", fontsize=10.5, color=INK)
        for image, x in zip(images, lefts, strict=True):
            _show(axes, image, (x, bottom), cell)
        for error, x in zip(errors.get(title, ()), lefts, strict=False):
            said = f"MSE {mse_text(error)}"
            axes.text(x + cell / 2, bottom - 0.05, said, ha="center", va="top", fontsize=9, color=MUTED)
    for caption, x in zip(captions or (), lefts, strict=captions is not None):
        axes.text(x + cell / 2, height - top + 0.07, caption, ha="center", va="bottom", fontsize=9.5, color=INK)
    axes.set(xlim=(0, width), ylim=(0, height))
    return figure


def _show(axes: Axes, image: Tensor, corner: tuple[float, float], cell: float) -> None:
    """Draw an image in the middle of a square cell, whose lower left corner is given."""
    from matplotlib.patches import Rectangle

    rows, columns = image.shape[-2:]
    wide, high = cell * columns / max(rows, columns), cell * rows / max(rows, columns)
    x, y = corner[0] + (cell - wide) / 2, corner[1] + (cell - high) / 2
    axes.imshow(
        np.moveaxis(image.detach().cpu().numpy(), 0, -1),
        cmap="gray",
        vmin=0.0,
        vmax=1.0,
        interpolation="nearest",
        aspect="auto",
        extent=(x, x + wide, y, y + high),
    )
    axes.add_patch(Rectangle((x, y), wide, high, fill=False, edgecolor=FAINT, linewidth=0.8))
