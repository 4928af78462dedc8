"""What does without the federation, beside the trials: rows for table and figure, and a sentence where federating loses."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from fedveil.orchestrator.metrics import metric
from fedveil.orchestrator.report.groups import TrialGroup, group_seeds
from fedveil.orchestrator.report.rows import FINISHED, TrialRow

REFERENCES: Mapping[str, str] = {"public": "public only", "local": "local only"}
"""In ``utility/<key>_accuracy`` and ``utility/<key>_auc``, and what they are called."""
UNDEFENDED = "none"
"""The name of the defence that is none."""
_SCORES = ("accuracy", "auc")
_QUANTILE = 1.959964


def reference_groups(rows: Sequence[TrialRow]) -> list[TrialGroup]:
    """Return each reference as if it were a setting of its own, its scores under ``utility/accuracy`` and ``utility/auc``.

    The trials of one seed share it; where they do not (a sweep over the data, the model or the clients), the best counts,
    since that is what has to be beaten.
    """
    found = []
    for key, label in REFERENCES.items():
        by_seed: dict[str, list[TrialRow]] = defaultdict(list)
        for row in rows:
            if row.finished and f"utility/{key}_accuracy" in row.metrics:
                by_seed[str(row.params.get("seed"))].append(row)
        for seed, own in by_seed.items():
            best = max(own, key=lambda row: row.metrics[f"utility/{key}_accuracy"]).metrics
            scores = {f"utility/{s}": best[f"utility/{key}_{s}"] for s in _SCORES if f"utility/{key}_{s}" in best}
            found.append(TrialRow(label, FINISHED, {"defense.name": label, "seed": seed}, scores))
    return group_seeds(found)


def federating_line(rows: Sequence[TrialRow]) -> str:
    """Say where an undefended federation is not above its references, by the 95 % interval of its test accuracy.

    The interval is Student's t over seeds, or with one seed Wilson's for a share of the test images. Of several undefended
    settings the most accurate one stands for all.

    Args:
        rows: trials, whichever.

    Returns:
        a sentence, empty where federating pays, or where there is no undefended trial with references.
    """
    undefended = [g for g in group_seeds(rows) if g.defense == UNDEFENDED and "utility/accuracy" in g.metrics]
    if not undefended:
        return ""
    best = max(undefended, key=lambda group: group.metrics["utility/accuracy"])
    accuracy, ends = best.metrics["utility/accuracy"], _interval(best)
    names = {f"utility/{key}_accuracy": label for key, label in REFERENCES.items()}
    unbeaten = {label: best.metrics[n] for n, label in names.items() if best.metrics.get(n, -1.0) >= ends[0]}
    if not unbeaten:
        return ""
    write = metric("utility/accuracy").write
    verdict = "does not pay" if accuracy <= max(unbeaten.values()) else "is not shown to pay"
    others = ", ".join(f"{label} {write(value)}" for label, value in unbeaten.items())
    return f"Federating {verdict} here: {UNDEFENDED} {write(accuracy)} [{write(ends[0])}, {write(ends[1])}], {others}"


def _interval(group: TrialGroup) -> tuple[float, float]:
    """Over seeds, or over test images; both ends at the accuracy where neither is known."""
    accuracy = group.metrics["utility/accuracy"]
    over_seeds, images = group.interval("utility/accuracy"), group.metrics.get("utility/test_images")
    if over_seeds is not None or images is None:
        return over_seeds or (accuracy, accuracy)
    return wilson(accuracy, images)


def wilson(share: float, count: float) -> tuple[float, float]:
    """Return the ends of Wilson's 95 % interval (Wilson 1927) of a share of ``count`` independent cases.

    >>> tuple(round(end, 3) for end in wilson(0.5, 10))
    (0.237, 0.763)
    """
    squared = _QUANTILE**2
    middle = share + squared / (2 * count)
    half = _QUANTILE * math.sqrt(share * (1 - share) / count + squared / (4 * count**2))
    return (middle - half) / (1 + squared / count), (middle + half) / (1 + squared / count)
