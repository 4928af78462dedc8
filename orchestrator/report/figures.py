"""The trade-off of a sweep's settings as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import Bbox

from fedveil.attacks.audit.figures import FAINT, INK, MUTED, new_figure, save
from fedveil.fl.errors import FedveilError
from fedveil.orchestrator.report.groups import TrialGroup, group_seeds
from fedveil.orchestrator.report.labels import place_labels
from fedveil.orchestrator.report.pareto import TRADE_OFF, front_of
from fedveil.orchestrator.report.references import reference_groups
from fedveil.orchestrator.report.rows import TrialRow
from fedveil.orchestrator.report.style import for_text, looks

_Point = tuple[float, float]


def pareto_figure(
    rows: Sequence[TrialRow], path: Path, *, title: str = "Accuracy against reconstruction error"
) -> None:
    """Draw accuracy against worst-case reconstruction MSE, a point per setting, to ``path``.

    Up and to the right is better. Settings that may not compete (no adaptive attack or a weak one, collapsed) are hollow.
    The number at a point is the defence's strength, or the setting that stands for it; upright lines are the accuracies of
    what does without the federation (`reference_groups`). Whiskers are 95 % intervals: of the MSE over victims, and of the
    accuracy over seeds where there are several.

    Raises:
        FedveilError: no finished trial holds both numbers.
    """
    save(draw_pareto(rows, title=title), path)


def drawn(rows: Sequence[TrialRow]) -> list[TrialGroup]:
    """Return the settings that the figure has a point for: those with both numbers."""
    return [group for group in group_seeds(rows) if TRADE_OFF.keys() <= group.metrics.keys()]


def draw_pareto(rows: Sequence[TrialRow], *, title: str) -> Figure:
    """Return the figure that `pareto_figure` writes."""
    shown = drawn(rows)
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
        _draw_whiskers(axes, mine, look.color)
        # the legend's own point, so that a defence whose first trial is hollow has a full one
        axes.scatter([], [], 62, look.color, marker=look.marker, label=name)
    _draw_front(axes, front_of(rows))
    references = reference_groups(rows)
    _set_limits(axes, [*shown, *references])
    _draw_baseline(axes, shown)
    _draw_references(axes, references)
    axes.set_xlabel("test accuracy", color=INK, fontsize=11)
    axes.set_ylabel("reconstruction MSE, worst case over attacks", color=INK, fontsize=11)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    across = " and, across, over seeds" if any(len(row.members) > 1 for row in shown) else ""
    axes.set_title(title, loc="left", color=INK, fontsize=14, fontweight="bold", pad=26)
    axes.text(
        0,
        1.025,
        "up and right is better; numbers are settings, whiskers 95 % intervals over victims" + across,
        transform=axes.transAxes,
        color=MUTED,
        fontsize=10,
    )
    if not all(row.comparable for row in shown):
        axes.scatter(
            [],
            [],
            62,
            "white",
            edgecolors=MUTED,
            linewidths=1.4,
            label="no adaptive attack,\nor a weak one,\nor collapsed",
        )
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=10, labelcolor=INK)
    figure.tight_layout()
    labelled = [row for row in shown if row.dial_text]
    place_labels(
        axes,
        [_point(row) for row in labelled],
        [row.dial_text for row in labelled],
        size=9,
        colors=[for_text(look_of[row.defense].color) for row in labelled],
        lines=[box for row in shown for box in _whisker_boxes(row)],
    )
    return figure


def _point(row: TrialRow) -> _Point:
    accuracy, error = (row.metrics[name] for name in TRADE_OFF)
    return accuracy, error


def _ends(row: TrialGroup, name: str) -> tuple[float, float]:
    """The ends of the whisker, both at the point where there is none."""
    return row.interval(name) or (row.metrics[name], row.metrics[name])


def _draw_whiskers(axes: Axes, rows: Sequence[TrialGroup], color: str) -> None:
    points = np.array([_point(row) for row in rows])
    ends = np.array([[_ends(row, name) for name in TRADE_OFF] for row in rows])
    x, y = np.abs(ends - points[:, :, None]).transpose(1, 2, 0)
    axes.errorbar(
        points[:, 0], points[:, 1], y, x, fmt="none", ecolor=color, elinewidth=1.2, capsize=2.5, alpha=0.6, zorder=3
    )


def _whisker_boxes(row: TrialGroup) -> list[Bbox]:
    x, y = _point(row)
    (left, right), (low, high) = (_ends(row, name) for name in TRADE_OFF)
    return [Bbox.from_extents(left, y, right, y), Bbox.from_extents(x, low, x, high)]


def _draw_front(axes: Axes, front: Sequence[TrialRow]) -> None:
    """A staircase: between two trials nothing was measured, so the more accurate one's error holds."""
    if not front:
        return
    x, y = zip(*sorted(map(_point, front)), strict=True)
    axes.step(x, y, where="pre", color=MUTED, linewidth=1.3, zorder=2, label="Pareto front")


def _set_limits(axes: Axes, rows: Sequence[TrialGroup]) -> None:
    x = [end for row in rows for end in _ends(row, "utility/accuracy")]
    y = [end for row in rows if "privacy/mse" in row.metrics for end in _ends(row, "privacy/mse")]
    margin = 0.08 * max(max(x) - min(x), 0.05)
    axes.set_xlim(min(x) - margin, max(x) + margin)
    top = max([*y, *_baselines(rows), 1e-6])
    axes.set_ylim(-0.03 * top, 1.12 * top)


def _baselines(rows: Sequence[TrialGroup]) -> list[float]:
    return [row.metrics["privacy/baseline_mse"] for row in rows if "privacy/baseline_mse" in row.metrics]


def _draw_baseline(axes: Axes, rows: Sequence[TrialGroup]) -> None:
    baselines = _baselines(rows)
    if not baselines:
        return
    axes.axhline(fmean(baselines), color=INK, linestyle=(0, (5, 4)), linewidth=1.1, zorder=1)
    axes.annotate(
        "an attacker without the update (class mean)",
        (0, fmean(baselines)),
        xycoords=axes.get_yaxis_transform(),
        xytext=(6, 4),
        textcoords="offset points",
        fontsize=9,
        color=INK,
    )


def _draw_references(axes: Axes, references: Sequence[TrialGroup]) -> None:
    """Upright lines at the accuracies of what does without the federation; labels to the outside of the two."""
    ordered = sorted(references, key=lambda row: row.metrics["utility/accuracy"])
    for at, row in enumerate(ordered):
        accuracy, left = row.metrics["utility/accuracy"], at == 0 and len(ordered) > 1
        axes.axvline(accuracy, color=MUTED, linestyle=(0, (5, 4)), linewidth=1.1, zorder=1)
        axes.annotate(
            row.name,
            (accuracy, 0.98),
            xycoords=axes.get_xaxis_transform(),
            xytext=(-4 if left else 4, 0),
            textcoords="offset points",
            rotation=90,
            va="top",
            ha="right" if left else "left",
            fontsize=9,
            color=MUTED,
        )


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=10)
    axes.grid(color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
