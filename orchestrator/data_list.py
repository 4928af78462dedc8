"""``fedveil data list``: a table that fits the window as far as names allow, which are copied and so never cut or broken."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedveil.fl.data.source import DataEntry

READABLE = 20
"""Columns below which nobody reads a line of words."""
TITLES = ("name", "here", "sizes", "channels", "classes")


def show_data(entries: Sequence[DataEntry], console: Console) -> None:
    """Print what data sets there are. In a window that is too narrow for their sources these are left out."""
    rows = [
        (entry.name, "yes" if entry.present else "-", entry.size_text(), entry.channels or "?", entry.classes or "?")
        for entry in entries
    ]
    table = Table(box=None, header_style="bold")
    for title in TITLES:
        table.add_column(title, no_wrap=True)
    # A column has a space on both its sides.
    taken = sum(2 + max(len(str(cell)) for cell in column) for column in zip(TITLES, *rows, strict=True))
    sourced = taken + READABLE + 2 <= console.width
    if sourced:
        table.add_column("source", overflow="fold")
    for entry, row in zip(entries, rows, strict=True):
        table.add_row(*(Text(str(cell)) for cell in row), *([Text(entry.origin)] if sourced else []))
    # A name may be longer than any window: then its line runs on.
    Console(file=console.file, width=max(taken, console.width)).print(table)
    if not sourced:
        console.print("fedveil list data NAME says where one comes from", style="dim", soft_wrap=True)
