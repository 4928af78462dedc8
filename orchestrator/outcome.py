"""What came out of a sweep, as numbers and as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.report import TrialRow, pareto_figure, pareto_front


@dataclass(frozen=True)
class SweepOutcome:
    """A finished sweep.

    Attributes:
        experiment: its name.
        rows: its trials.
        front: those of them that no other beats in all objectives.
        metrics: ``sweep/...`` for the parent run.
        files: figures that were drawn.
        root: the experiment's folder.
    """

    experiment: str
    rows: tuple[TrialRow, ...]
    front: tuple[TrialRow, ...]
    metrics: Mapping[str, float]
    files: tuple[Path, ...]
    root: Path

    @property
    def failed(self) -> int:
        """Trials that did not finish."""
        return sum(not row.finished for row in self.rows)


def summarise_sweep(
    experiment: str, rows: Sequence[TrialRow], objectives: Mapping[str, Literal["max", "min"]], root: Path
) -> SweepOutcome:
    """Draw the Pareto figure and pick the front."""
    drawable = [row for row in rows if row.finished and {"utility/accuracy", "privacy/mse"} <= row.metrics.keys()]
    front = pareto_front([row for row in drawable if objectives.keys() <= row.metrics.keys()], objectives)
    figures = []
    if drawable:
        figures.append(root / "pareto.png")
        pareto_figure(rows, figures[0], title=f"{experiment}: accuracy against reconstruction error")
    metrics = {
        "sweep/trials": float(len(rows)),
        "sweep/failed": float(sum(not row.finished for row in rows)),
        "sweep/pareto_front": float(len(front)),
    }
    return SweepOutcome(experiment, tuple(rows), tuple(front), metrics, tuple(figures), root)
