"""What came out of a sweep, as numbers and as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from fedveil.attacks import ATTACKS
from fedveil.orchestrator.report import TRADE_OFF, TrialRow, hypervolume, pareto_front


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
        """Trials that failed; those that a scheduler stopped did not."""
        return sum(row.status == "FAILED" for row in self.rows)


def summarise_sweep(
    experiment: str, rows: Sequence[TrialRow], objectives: Mapping[str, Literal["max", "min"]], root: Path
) -> SweepOutcome:
    """Draw the Pareto figure and the comparison of the victims, and pick the front."""
    drawable = [row for row in rows if row.finished and {"utility/accuracy", "privacy/mse"} <= row.metrics.keys()]
    comparable = [row for row in drawable if row.comparable]
    front = pareto_front(comparable, objectives)
    figures = []
    if drawable:
        from fedveil.orchestrator.report.figures import pareto_figure

        figures.append(root / "pareto.png")
        pareto_figure(rows, figures[0], title=f"{experiment}: accuracy against reconstruction error")
        figures += _comparison(drawable, root)
    metrics = {
        "sweep/trials": float(len(rows)),
        "sweep/failed": float(sum(row.status == "FAILED" for row in rows)),
        "sweep/pareto_front": float(len(front)),
        "sweep/hypervolume": hypervolume(comparable, TRADE_OFF, dict.fromkeys(TRADE_OFF, 0.0)),
    }
    return SweepOutcome(experiment, tuple(rows), tuple(front), metrics, tuple(figures), root)


def _comparison(rows: Sequence[TrialRow], root: Path) -> list[Path]:
    """Draw the same victims under each defence, as far as their pictures are there."""
    from fedveil.orchestrator.report.comparison import comparison_figure, leakiest_attack, representatives

    panels = {}
    originals = None
    for row in representatives(rows):
        path = root / "trials" / row.name / "pictures.pt"
        if not path.exists():
            continue
        pictures = torch.load(path, weights_only=True)
        real = [n for n in pictures["reconstructions"] if n != "baseline" and not ATTACKS[n].needs.trained_images]
        if real:
            attack = leakiest_attack(row, real)
            title = row.defense.replace("_", " ") + ("" if row.strength is None else f" {row.strength:.2g}")
            panels[title] = (pictures["trained"], attack, pictures["reconstructions"][attack])
            originals = pictures["originals"]
    if originals is None:
        return []
    comparison_figure(root / "comparison.png", originals, panels)
    return [root / "comparison.png"]
