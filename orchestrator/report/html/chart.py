"""The trade-off figure inside a page: drawn as for a file, with a target on each point that shows what it stands for."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import Element

import matplotlib as mpl
from matplotlib.figure import Figure

from fedveil.orchestrator.report.columns import filled
from fedveil.orchestrator.report.figures import draw_pareto, drawn
from fedveil.orchestrator.report.groups import TrialGroup
from fedveil.orchestrator.report.html.markup import adopted, node
from fedveil.orchestrator.report.html.words import named
from fedveil.orchestrator.report.pareto import TRADE_OFF
from fedveil.orchestrator.report.rows import TrialRow

_POINTS_PER_INCH = 72.0
"""Units of a drawing in SVG."""
_REACH = 11.0
"""Radius around a point, in these units, within which a pointer is on it."""


def chart(rows: Sequence[TrialRow], settings: Mapping[str, TrialGroup]) -> Element | None:
    """Return the figure of accuracy against reconstruction error; None where no trial has both.

    Each point is a link to the setting's line in the table, with the numbers as its label and title: a browser shows them
    to whoever points at it or comes to it by keyboard, with the page's script or without.

    Args:
        rows: trials.
        settings: those of the table, by the id of their line.
    """
    if not drawn(rows):
        return None
    figure = draw_pareto(rows, title="")
    figure.axes[0].set_facecolor("none")  # the page's own paper, light or dark
    picture = adopted(_svg(figure))
    for size in ("width", "height"):
        del picture.attrib[size]  # as wide as the page
    picture.set("role", "group")
    picture.set("aria-label", "Accuracy against reconstruction error: a link for each setting")
    columns = filled(list(settings.values()))
    shown = {place: row for place, row in settings.items() if TRADE_OFF.keys() <= row.metrics.keys()}
    for (place, row), (x, y) in zip(shown.items(), _spots(figure, list(shown.values())), strict=True):
        said = "\n".join([named(row), *(f"{column.heading}: {column.full(row)}" for column in columns)])
        target = node("circle", class_="target", cx=f"{x:.2f}", cy=f"{y:.2f}", r=f"{_REACH:g}")
        picture.append(node("a", node("title", said), target, class_="point", href=f"#{place}", aria_label=said))
    return picture


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    # Text stays text; ids depend on nothing but the drawing, and no date is in it: the same trials make the same page.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fedveil"}):
        figure.savefig(out, format="svg", facecolor="none", metadata={"Date": None})
    return out.getvalue()


def _spots(figure: Figure, settings: Sequence[TrialGroup]) -> list[tuple[float, float]]:
    """Where the points are in the SVG, whose origin is its upper left corner."""
    (axes,) = figure.axes
    found = axes.transData.transform([[row.metrics[name] for name in TRADE_OFF] for row in settings])
    scale = _POINTS_PER_INCH / figure.dpi
    return [(float(x) * scale, (figure.bbox.height - float(y)) * scale) for x, y in found]
