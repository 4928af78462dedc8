"""The two pictures of a sweep: the trade-off of all trials, and what an attacker rebuilds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from fedveil.attacks.scoring.metrics import mse
from fedveil.fl.errors import FedveilError
from fedveil.orchestrator.report.labels import place_labels
from fedveil.orchestrator.report.numbers import mse_text
from fedveil.orchestrator.report.pareto import TRADE_OFF, pareto_front
from fedveil.orchestrator.report.rows import TrialRow
from fedveil.orchestrator.report.style import FAINT, INK, MUTED, for_text, looks, new_figure, save

_ORIGINAL = "original"

_Point = tuple[float, float]


def pareto_figure(
    rows: Sequence[TrialRow], path: Path, *, title: str = "Accuracy against reconstruction error"
) -> None:
    """Draw accuracy against worst-case reconstruction MSE, a point per finished trial, to ``path``.

    Up and to the right is better. Trials that may not compete (no adaptive attack, collapsed) are hollow. The
    number at a point is the defence's strength.

    Raises:
        FedveilError: no finished trial holds both numbers.
    """
    save(draw_pareto(rows, title=title), path)


def draw_pareto(rows: Sequence[TrialRow], *, title: str) -> Figure:
    """Return the figure that `pareto_figure` writes."""
    shown = [row for row in rows if row.finished and TRADE_OFF.keys() <= row.metrics.keys()]
    if not shown:
        raise FedveilError("figure: no finished trial holds both utility/accuracy and privacy/mse")
    figure = new_figure(9.2, 5.6)
    axes = figure.add_subplot()
    _plain(axes)
    look_of = looks(row.defense for row in shown)
    for name, look in look_of.items():
        mine = [row for row in shown if row.defense == name]
        x, y = zip(*map(_point, mine), strict=True)
        faces = [look.color if row.comparable else "white" for row in mine]
        axes.scatter(x, y, 62, faces, marker=look.marker, edgecolors=look.color, linewidths=1.4, zorder=4)
        # the legend's own point, so that a defence whose first trial is hollow has a full one
        axes.scatter([], [], 62, look.color, marker=look.marker, label=name)
    _draw_front(axes, pareto_front([row for row in shown if row.comparable], TRADE_OFF))
    _set_limits(axes, shown)
    _draw_floor(axes, shown)
    axes.set_xlabel("test accuracy", color=INK, fontsize=11)
    axes.set_ylabel("reconstruction MSE, worst case over attacks", color=INK, fontsize=11)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_title(title, loc="left", color=INK, fontsize=14, fontweight="bold", pad=26)
    axes.text(
        0,
        1.025,
        "up and right is better; numbers are perturbation strengths",
        transform=axes.transAxes,
        color=MUTED,
        fontsize=10,
    )
    if not all(row.comparable for row in shown):
        axes.scatter([], [], 62, "white", edgecolors=MUTED, linewidths=1.4, label="no adaptive attack,\nor collapsed")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=10, labelcolor=INK)
    figure.tight_layout()
    labelled = [row for row in shown if row.strength is not None]
    place_labels(
        axes,
        [_point(row) for row in labelled],
        [f"{row.strength:.2g}" for row in labelled],
        size=9,
        colors=[for_text(look_of[row.defense].color) for row in labelled],
    )
    return figure


def reconstruction_figure(
    path: Path,
    originals: Tensor,
    trained: Tensor,
    reconstructions: Mapping[str, Tensor],
    captions: Sequence[str] | None = None,
) -> None:
    """Draw the rows original / what the client trained on / one per attack, and write them to ``path``.

    Columns are victims. Below each image but the original stands its MSE to the original.

    Args:
        path: where to write; the suffix gives the format.
        originals: (n, C, H, W) in [0, 1], C is 1 or 3.
        trained: (n, C, H, W) in [0, 1], what the client trained on, in the originals' order.
        reconstructions: by attack name, (n, C, H, W) in [0, 1], already matched to the originals.
        captions: one per victim, written above its column.

    Raises:
        FedveilError: the shapes differ, or images leave [0, 1].
    """
    save(draw_reconstructions(originals, trained, reconstructions, captions), path)


def draw_reconstructions(
    originals: Tensor, trained: Tensor, reconstructions: Mapping[str, Tensor], captions: Sequence[str] | None
) -> Figure:
    """Return the figure that `reconstruction_figure` writes."""
    rows = {"what the client\ntrained on": trained}
    rows |= {f"attack:\n{name.replace('_', ' ')}": images for name, images in reconstructions.items()}
    return draw_rows(originals, rows, captions)


def draw_rows(originals: Tensor, others: Mapping[str, Tensor], captions: Sequence[str] | None) -> Figure:
    """Return a figure with the originals in its first row and one row per entry of ``others``, by title.

    Args:
        originals: (n, C, H, W) in [0, 1].
        others: (n, C, H, W) in [0, 1] each; every image gets its MSE to the original.
        captions: one per column.
    """
    rows = {_ORIGINAL: originals, **others}
    # inches: one image with its caption, and margins that hold the titles
    cell, below = 1.25, 0.24
    left = 0.25 + 0.078 * max(len(part) for title in rows for part in title.splitlines())
    top = 0.35 if captions else 0.15
    width, height = left + cell * len(originals) + 0.15, (cell + below) * len(rows) + top + 0.1
    figure = new_figure(width, height)
    grid = figure.subplots(len(rows), len(originals), squeeze=False)
    for (title, images), line in zip(rows.items(), grid, strict=True):
        errors = mse(images, originals).tolist()
        for image, error, axes in zip(images, errors, line, strict=True):
            _show(axes, image)
            if title != _ORIGINAL:
                axes.set_xlabel(f"MSE {mse_text(error)}", fontsize=9, color=MUTED, labelpad=3)
        line[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=10.5, color=INK, labelpad=8)
    for caption, axes in zip(captions or (), grid[0], strict=captions is not None):
        axes.set_title(caption, fontsize=9.5, color=INK, pad=5)
    figure.subplots_adjust(
        left=left / width,
        right=1 - 0.15 / width,
        top=1 - top / height,
        bottom=(below + 0.1) / height,
        wspace=0.06,
        hspace=below / cell,
    )
    return figure


def _point(row: TrialRow) -> _Point:
    return row.metrics["utility/accuracy"], row.metrics["privacy/mse"]


def _draw_front(axes: Axes, front: Sequence[TrialRow]) -> None:
    """A staircase: between two trials nothing was measured, so the more accurate one's error holds."""
    if not front:
        return
    x, y = zip(*sorted(map(_point, front)), strict=True)
    axes.step(x, y, where="pre", color=MUTED, linewidth=1.3, zorder=2, label="Pareto front")


def _set_limits(axes: Axes, rows: Sequence[TrialRow]) -> None:
    x, y = zip(*map(_point, rows), strict=True)
    margin = 0.08 * max(max(x) - min(x), 0.05)
    axes.set_xlim(min(x) - margin, max(x) + margin)
    top = max([*y, *_floors(rows), 1e-6])
    axes.set_ylim(-0.03 * top, 1.12 * top)


def _floors(rows: Sequence[TrialRow]) -> list[float]:
    return [row.metrics["privacy/baseline_mse"] for row in rows if "privacy/baseline_mse" in row.metrics]


def _draw_floor(axes: Axes, rows: Sequence[TrialRow]) -> None:
    floors = _floors(rows)
    if not floors:
        return
    axes.axhline(fmean(floors), color=INK, linestyle=(0, (5, 4)), linewidth=1.1, zorder=1)
    axes.annotate(
        "an attacker without the update (class mean)",
        (0, fmean(floors)),
        xycoords=axes.get_yaxis_transform(),
        xytext=(6, 4),
        textcoords="offset points",
        fontsize=9,
        color=INK,
    )


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=10)
    axes.grid(color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)


def _show(axes: Axes, image: Tensor) -> None:
    axes.imshow(
        np.moveaxis(image.detach().cpu().numpy(), 0, -1),
        cmap="gray",
        vmin=0.0,
        vmax=1.0,
        interpolation="nearest",
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(FAINT)
