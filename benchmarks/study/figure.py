"""A data set's trade-off: accuracy on untouched test images against the error that the closest attacker is left with."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.study.cell import SILENT, untouched
from benchmarks.study.protocols import FAMILIES
from fedveil.orchestrator.report.style import for_text, looks

Row = Mapping[str, Any]

MOST_IN_A_COLUMN = 20
"""Families in a column of the legend."""


def draw_trade_off(
    rows: Sequence[Row], *, title: str, families: Collection[str] = tuple(FAMILIES), best: bool = False
) -> Figure:
    """Draw a family of defences as one line over its settings; whiskers span the seeds.

    Args:
        rows: of one data set.
        title: of the figure.
        families: all that have a look of their own, whether or not there is a row of them.
        best: name only the settings that no other one beats in both, with their families; there are too many for all.
    """
    columns = math.ceil(len(families) / MOST_IN_A_COLUMN)
    figure = Figure(figsize=(6.5 + 1.5 * columns, 4.6), layout="constrained")
    axes = figure.add_subplot()
    style = looks(families)
    attacked: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["defense"] in SILENT:
            continue
        attacked[row["defense"]][str(row["settings"])].append(row)
    means = {
        (family, at): (fmean(map(untouched, same)), fmean(map(left, same)))
        for family, settings in attacked.items()
        for at, same in settings.items()
    }

    def unbeaten(x: float, y: float) -> bool:
        return not any(a >= x and b >= y and (a, b) != (x, y) for a, b in means.values())

    for family, settings in attacked.items():
        look = style[family]
        points = [
            (list(map(untouched, same)), list(map(left, same)), same[0]["settings"]) for same in settings.values()
        ]
        points.sort(key=lambda point: fmean(point[0]))
        across, up = [fmean(x) for x, _, _ in points], [fmean(y) for _, y, _ in points]
        axes.plot(across, up, color=look.color, marker=look.marker, label=family, linewidth=1, markersize=6)
        for (xs, ys, named), x, y in zip(points, across, up, strict=True):
            axes.plot([min(xs), max(xs)], [y, y], color=look.color, linewidth=1)
            axes.plot([x, x], [min(ys), max(ys)], color=look.color, linewidth=1)
            says = ", ".join(f"{key} {value}" for key, value in named.items())
            if best:
                says = f"{family} {says}".strip() if unbeaten(x, y) else ""
            axes.annotate(says, (x, y), (5, 5), textcoords="offset points", fontsize=8, color=for_text(look.color))
    _mark_silent(axes, rows)
    axes.axhline(1, color="0.6", linewidth=1, linestyle=":")
    axes.annotate(
        "guessing the class mean",
        (0.01, 1),
        (0, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontsize=8,
        color="0.4",
    )
    axes.set(
        title=title,
        xlabel="accuracy on untouched test images",
        ylabel="attacker's error, of a guess's",
        ylim=(-0.03, 1.12),
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.margins(x=0.12)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), ncols=columns)
    return figure


def left(row: Row) -> float:
    """Return the closest attacker's error in units of that of guessing the class mean."""
    worst = row["privacy"]["worst"]
    return float(worst["mse"] / worst["baseline_mse"])


def save_trade_off(rows: Sequence[Row], path: Path, *, title: str, **options: Any) -> None:
    """Draw into a file; see `draw_trade_off`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_trade_off(rows, title=title, **options).savefig(path, dpi=110)


def _mark_silent(axes: Axes, rows: Sequence[Row]) -> None:
    for name in SILENT:
        found = [untouched(row) for row in rows if row["defense"] == name]
        if found:
            axes.axvline(fmean(found), color="0.6", linewidth=1, linestyle="--")
            axes.annotate(
                name.replace("_", " "),
                (fmean(found), 0.5),
                (3, 0),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                fontsize=8,
                color="0.4",
                rotation=90,
                va="center",
            )
