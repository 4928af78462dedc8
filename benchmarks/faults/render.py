"""The page of faults, docs/faults.md, from the record of what each cost: no number in it is written by hand."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.faults.stage import FAULTS
from benchmarks.tables import MISSING, machine, table

PAGE = Path("docs/faults.md")
_ABOUT = """# What faults cost

Made by `python -m benchmarks.faults` of its record, `benchmarks/results/faults.json`. Each fault is caused in a real
small run or sweep: `fedveil` in a process of its own, its own Ray, an MLflow server or SQLite file. Each try has its own
moment: where a fault may come at any time, as many tries as there are lie evenly over the whole run, of which the start
is the longest part. Lost: points, params, files and ends of trials that an undisturbed run has and this one has not, in
MLflow, in `runs/` or in the JSON at its end. Doubled: what it has once too often. Bit-equal: the share of tries in which
all numbers are equal to those of an undisturbed run, to the last bit. Seconds: from the fault to the end of all, median
and most; starts of `fedveil` that follow a fault (begun anew, resumed) are among them. A try that cost something is
repeated once the code is mended; so were, among others, a node killed while its worker started (the trial waited five
minutes, and failed) and garbage behind the end of a trial that a resumed sweep then recorded as killed.
"""

Row = dict[str, Any]


def page(out: Path) -> str:
    """Return the page.

    Args:
        out: the record.
    """
    if not out.exists():
        return f"{_ABOUT}\n{MISSING}\n"
    record = json.loads(out.read_text())
    rows: list[Row] = record["rows"]
    lines = [line(title, [row for row in rows if row["kind"] == name]) for name, title in _titles() if _has(rows, name)]
    missing = [title for name, title in _titles() if not _has(rows, name)]
    head = ["fault", "moments", "times", "lost", "doubled", "bit-equal", "seconds"]
    troubles = [f"- {dict(_titles())[row['kind']]}, {row['moment']}: {said(row)}" for row in rows if row["troubles"]]
    parts = [_ABOUT, table(head, lines), "", machine(record)]
    parts += ["", "## What went wrong", "", *troubles] if troubles else []
    parts += ["", f"Not measured yet: {'; '.join(missing)}."] if missing else []
    return "\n".join(parts) + "\n"


def line(title: str, rows: Sequence[Row]) -> list[str]:
    """Return a kind's line of the table."""
    moments = Counter(row["moment"] for row in rows)
    seconds = [row["seconds"] for row in rows]
    return [
        title,
        ", ".join(moment if times == 1 else f"{moment} ({times})" for moment, times in sorted(moments.items())),
        str(len(rows)),
        str(sum(row["lost"] for row in rows)),
        str(sum(row["doubled"] for row in rows)),
        f"{sum(row['bit_equal'] for row in rows)} of {len(rows)}",
        f"{median(seconds):.0f}, {max(seconds):.0f}",
    ]


def said(row: Row) -> str:
    """Return a row's troubles in one line."""
    return "; ".join(" ".join(trouble.split())[:200] for trouble in row["troubles"])


def _titles() -> list[tuple[str, str]]:
    return [(one.name, one.title) for one in FAULTS.values()]


def _has(rows: Sequence[Row], name: str) -> bool:
    return any(row["kind"] == name for row in rows)
