"""How records become Markdown."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

MISSING = "Not measured yet."

Row = dict[str, Any]


def page_arguments(about: str | None, results: Path, page: Path) -> argparse.Namespace:
    """Return where a page's records are, and where it goes: ``results`` and ``page``, unless the command says otherwise."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=results)
    parser.add_argument("--page", type=Path, default=page)
    return parser.parse_args()


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    every = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in every)


def machine(record: dict[str, Any]) -> str:
    """Return where a record was made, in one line."""
    known = record["machine"]
    device = known.get("gpu", f"{known['cpu']}, {known['threads']} thread(s)")
    return f"{device}; PyTorch {known['torch']}, Python {known['python']}."


def read(results: Path, name: str) -> dict[str, Any] | None:
    """Return a record, or None where there is none."""
    path = results / name
    if not path.exists():
        return None
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def ratio(found: dict[str, float] | None) -> str:
    """Return a median ratio with the least and the largest."""
    return "-" if found is None else f"{found['median']:.2f} ({found['least']:.2f} to {found['most']:.2f})"
