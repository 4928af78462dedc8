"""One picture for a whole sweep: the same victims under each defence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from fedveil.attacks.audit.figures import draw_rows, save
from fedveil.orchestrator.report.groups import TrialGroup, group_seeds
from fedveil.orchestrator.report.pareto import TRADE_OFF
from fedveil.orchestrator.report.rows import TrialRow

MARGIN = 0.05
"""Accuracy that a defence may cost against the best trial and still be shown at its most private."""


def representatives(rows: Sequence[TrialRow]) -> list[TrialGroup]:
    """Return a setting per defence: its most private one that keeps accuracy, or else its most accurate one."""
    # A weak attack wins no trial its place on the front, but what it made may be looked at.
    attacked = [group for group in group_seeds(rows) if group.finished and group.complete and not group.collapsed]
    shown = [group for group in attacked if TRADE_OFF.keys() <= group.metrics.keys()]
    if not shown:
        return []
    needed = max(row.metrics["utility/accuracy"] for row in shown) - MARGIN
    chosen = []
    for defense in dict.fromkeys(row.defense for row in shown):
        own = [row for row in shown if row.defense == defense]
        keeping = [row for row in own if row.metrics["utility/accuracy"] >= needed]
        if keeping:
            best = max(keeping, key=lambda row: row.metrics["privacy/mse"])
        else:
            best = max(own, key=lambda row: row.metrics["utility/accuracy"])
        chosen.append(best)
    return chosen


def comparison_figure(
    path: Path,
    originals: Tensor,
    panels: Mapping[str, tuple[Tensor, str, Tensor]],
    captions: Sequence[str] | None = None,
) -> None:
    """Draw the originals, and for each defence what the client trained on and what an attack made of its update.

    Args:
        path: where to write.
        originals: (n, C, H, W) in [0, 1].
        panels: by title: what the client trained on, the attack's name and its reconstructions, (n, C, H, W) each.
        captions: one per victim.

    Raises:
        FedveilError: the shapes differ, or images leave [0, 1].
    """
    rows: dict[str, Tensor] = {}
    for title, (trained, attack, rebuilt) in panels.items():
        rows[f"{title}\ntrained on"] = trained
        rows[f"{title}\n{attack.replace('_', ' ')}"] = rebuilt
    save(draw_rows(originals, rows, captions), path)
