"""The table of metrics in ``docs/reference/metrics.md``: ``python -m website.metrics`` writes it anew.

Unlike the settings it has no file that says all of it, and the site is built without importing the package.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fedveil.orchestrator.metrics import CURVES, FINAL, SUMMARY, Metric

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "metrics.md"
_INTRODUCTION = """\
# Metrics

Every number that is recorded in MLflow, and that `--json` and tables name. `<attack>` stands for an attack's name, numbered
where an audit runs several of one name. *Better* is for the clients; what is a yardstick has no better. A search may have
those as objectives that are marked so. How to read them together: [What the numbers mean](../metrics.md).

Made by `python -m website.metrics` of the table in [orchestrator/metrics.py](../../orchestrator/metrics.py).
"""
_DIRECTIONS = {"max": "higher", "min": "lower", None: ""}


def page() -> str:
    """Return the page's text."""
    return "\n".join([_INTRODUCTION, *_tables()]).rstrip() + "\n"


def _tables() -> Iterator[str]:
    for title, metrics in (
        ("Of a trial, once", FINAL),
        ("Of a trial, after every round", CURVES),
        ("Of a sweep", SUMMARY),
    ):
        yield from (f"## {title}", "", "| metric | better | objective | meaning |", "| --- | --- | --- | --- |")
        yield from map(row, metrics)
        yield ""


def row(metric: Metric) -> str:
    """Return a metric's line.

    >>> row(Metric("fl/loss", "the clients' mean training loss", "min", objective=True))
    "| `fl/loss` | lower | yes | the clients' mean training loss |"
    """
    objective = "yes" if metric.objective else ""
    meaning = metric.meaning.replace("<", "&lt;").replace("|", "\\|")
    return f"| `{metric.name}` | {_DIRECTIONS[metric.better]} | {objective} | {meaning} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
