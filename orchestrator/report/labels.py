"""Short labels beside points, placed so that they cover neither each other nor a point."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from matplotlib.typing import ColorType

_POINT_RADIUS = 5.0
_LEADER_FROM = 10.0
_DIRECTIONS = ((1, 0), (1, 1), (1, -1), (0, 1), (-1, 0), (0, -1), (-1, 1), (-1, -1))
_PLACES = [(distance * x, distance * y) for distance in (8.0, 13.0, 19.0, 26.0) for x, y in _DIRECTIONS]
_HORIZONTAL: Mapping[int, Literal["left", "center", "right"]] = {-1: "right", 0: "center", 1: "left"}
_VERTICAL: Mapping[int, Literal["top", "center", "bottom"]] = {-1: "top", 0: "center", 1: "bottom"}


def place_labels(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    *,
    size: float,
    colors: Sequence[ColorType],
    lines: Sequence[Bbox] = (),
) -> list[Annotation]:
    """Write ``texts[i]`` beside ``points[i]`` (data coordinates) and return the annotations.

    Greedy: each label takes the place around its point, near ones first, that covers nothing placed so far
    and stays inside the axes; failing that, the one that covers least. A label that stands
    off has a thin line to its point. Set the limits and the layout before. ``lines`` (data coordinates, without width)
    are to be left free as the points are.
    """
    if not points:
        return []
    canvas = axes.get_figure(root=True).canvas  # type: ignore[union-attr]
    assert isinstance(canvas, FigureCanvasAgg)
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    pixel = renderer.points_to_pixels(1.0)
    inside = axes.get_window_extent(renderer)
    centres = [(float(x), float(y)) for x, y in axes.transData.transform(points)]
    taken = [_box(centre, (0.0, 0.0), 2 * _POINT_RADIUS * pixel, 2 * _POINT_RADIUS * pixel) for centre in centres]
    taken += [_widened(axes.transData.transform_bbox(line), pixel) for line in lines]
    placed = []
    for point, centre, text, color in zip(points, centres, texts, colors, strict=True):
        label = axes.annotate(
            text,
            point,
            xytext=(0.0, 0.0),
            textcoords="offset points",
            fontsize=size,
            color=color,
            zorder=5,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 4},
        )
        words = Text.get_window_extent(label, renderer)  # an Annotation's own extent holds the line too
        boxes = {(x, y): _box(centre, (x * pixel, y * pixel), words.width, words.height) for x, y in _PLACES}
        best = min(boxes, key=lambda place: _covered(boxes[place], taken, inside))
        taken.append(boxes[best])
        label.set_position(best)
        label.set_horizontalalignment(_HORIZONTAL[_sign(best[0])])
        label.set_verticalalignment(_VERTICAL[_sign(best[1])])
        if label.arrow_patch is not None:
            label.arrow_patch.set_visible(math.hypot(*best) > _LEADER_FROM)
        placed.append(label)
    return placed


def _widened(box: Bbox, by: float) -> Bbox:
    return Bbox.from_extents(box.x0 - by, box.y0 - by, box.x1 + by, box.y1 + by)


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)


def _box(centre: tuple[float, float], offset: tuple[float, float], width: float, height: float) -> Bbox:
    """The box whose side or corner that faces ``centre`` stands off from it by ``offset``."""
    left = centre[0] + offset[0] + 0.5 * width * (_sign(offset[0]) - 1)
    bottom = centre[1] + offset[1] + 0.5 * height * (_sign(offset[1]) - 1)
    return Bbox.from_bounds(left, bottom, width, height)


def _covered(box: Bbox, taken: Sequence[Bbox], inside: Bbox) -> float:
    """Square pixels of ``box`` that lie on something or outside the axes."""
    covered = sum(_area(Bbox.intersection(box, other)) for other in taken)
    return covered + _area(box) - _area(Bbox.intersection(box, inside))


def _area(box: Bbox | None) -> float:
    return 0.0 if box is None else float(box.width * box.height)
