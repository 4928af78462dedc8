"""What the controls leave an attacker at the accuracy of the defence that is studied."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from benchmarks.markdown import table
from benchmarks.study.cell import untouched

STUDIED = "latent"
CONTROLS = ("pixel_noise", "latent_noise", "block_average", "autoencoder", "group_mean", "latent_autoencoder")

Row = Mapping[str, Any]
Point = tuple[float, float]
"""Accuracy on untouched test images, and the closest attacker's MSE."""


def matched(rows: Sequence[Row], title: str) -> str:
    """Return a table of the studied defence's settings, each beside the controls that are measured at the same accuracy.

    Args:
        rows: of one data set.
        title: of its first column.

    Returns:
        Markdown, empty where no control is.
    """
    studied = sorted(points(rows, STUDIED).items(), key=lambda one: -one[1][0])
    found = {
        family: [at_accuracy(list(points(rows, family).values()), accuracy) for _, (accuracy, _) in studied]
        for family in CONTROLS
    }
    compared = {family: errors for family, errors in found.items() if any(errors)}
    if not compared:
        return ""
    lines = []
    for at, (name, (accuracy, error)) in enumerate(studied):
        beside = (errors[at] for errors in compared.values())
        told = ["-" if mse is None else f"{mse:.4f} ({error / mse:.1f}x)" for mse in beside]
        lines.append((f"`{STUDIED}` {name}", f"{accuracy:.3f}", f"{error:.4f}", *told))
    return table((title, "accuracy", "MSE", *(f"`{family}`" for family in compared)), lines)


def points(rows: Sequence[Row], family: str) -> dict[str, Point]:
    """Return the mean over seeds of each setting of a family."""
    seeds: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["defense"] == family:
            seeds[", ".join(f"{key} {value}" for key, value in row["settings"].items())].append(row)
    return {
        name: (fmean(map(untouched, same)), fmean(row["privacy"]["worst"]["mse"] for row in same))
        for name, same in seeds.items()
    }


def at_accuracy(curve: Sequence[Point], accuracy: float) -> float | None:
    """Return the MSE of a family at an accuracy, on straight lines between its settings; None outside of their range.

    A setting that another one beats in both is no part of the curve. Nothing is extrapolated: what more noise would have
    left at less accuracy was not measured.

    >>> at_accuracy([(0.9, 0.002), (0.8, 0.004), (0.7, 0.003)], 0.85)
    0.003
    >>> at_accuracy([(0.9, 0.002), (0.8, 0.004), (0.7, 0.003)], 0.75) is None
    True

    Args:
        curve: settings.
        accuracy: at which.
    """
    front = sorted(one for one in curve if not any(o[0] >= one[0] and o[1] >= one[1] and o != one for o in curve))
    for (low, most), (high, least) in pairwise(front):
        if low <= accuracy <= high:
            return round(most + (accuracy - low) / (high - low) * (least - most), 12)
    return front[0][1] if len(front) == 1 and front[0][0] == accuracy else None
