"""The table of trials on the screen: a line per setting."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from fedveil.orchestrator.report.columns import COLUMNS, Column, explained, filled
from fedveil.orchestrator.report.groups import TrialGroup, group_seeds
from fedveil.orchestrator.report.marks import MARKS, PARETO, Mark, marks_of
from fedveil.orchestrator.report.matched import Records, matched_line
from fedveil.orchestrator.report.pareto import front_of
from fedveil.orchestrator.report.references import federating_line, reference_groups
from fedveil.orchestrator.report.rows import TrialRow

_OF_INTEREST = 3
"""Rank of the columns for which names rather go over several lines than that they are left out."""
_NAME_WIDTH = 20


def fold(name: str, width: int = _NAME_WIDTH) -> str:
    """Return a name over several lines, broken where its parts begin and never within one.

    >>> fold("latent_autoencoder_strength=6_k=5").splitlines()
    ['latent_autoencoder_', 'strength=6_k=5']
    """
    lines = [""]
    for part in re.findall(r"[^_\-/+]+[_\-/+]?|[_\-/+]", name):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


class TrialTable:
    """A ``rich`` renderable: settings of finished trials with their marks, then the trials that failed with their errors.

    Trials that differ in their seed only are one line, see `group_seeds`. Below them stands what does without the
    federation, see `reference_groups`. Where the console is too narrow for all columns, long names go over several lines
    before a column of interest is left out, and what is left out is named. Columns without any number are left out, too.

    Args:
        rows: the trials of one sweep, in any order; they are shown by defence and setting.
        records: of the trials by name, for the interval at matched accuracy; see `matched_line`.
    """

    def __init__(self, rows: Sequence[TrialRow], records: Records | None = None) -> None:
        self._rows = sorted(rows, key=lambda row: (row.defense, row.dial or 0.0, row.name))
        self._groups = group_seeds(self._rows)
        self._front = front_of(self._rows)
        self._references = reference_groups(rows)
        self._lines = [line for line in (matched_line(rows, records), federating_line(rows)) if line]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table, what its marks mean, and one line for each trial that did not finish."""
        if self._groups:
            table, columns = self._fitting_table(console, options)
            yield table
            given = {mark for row in self._groups for mark in self._marks(row)}
            for mark in MARKS:
                if mark in given:
                    yield Text(f" {mark.sign} {mark.meaning}", style="dim")
            notes = explained(self._groups, columns, self._references)
            hidden = [column.heading for column in filled(self._groups) if column not in columns]
            if hidden:
                notes.append(f"Left out where the window is narrow: {', '.join(hidden)}.")
            yield Text(f" {' '.join(notes)}", style="dim")
            for line in self._lines:
                yield Text(f" {line}")
        for row in self._rows:
            if not row.finished:
                yield _unfinished(row)

    def _fitting_table(self, console: Console, options: ConsoleOptions) -> tuple[Table, list[Column]]:
        columns = filled(self._groups)
        most = max(column.rank for column in COLUMNS)
        forms = [(most, True, False)]
        for rank in range(most, -1, -1):
            forms += [(rank, False, folded) for folded in ((False, True) if rank <= _OF_INTEREST else (False,))]
        for rank, wide, folded in forms:
            kept = [column for column in columns if column.rank <= rank]
            table = self._table(kept, wide=wide, folded=folded)
            if console.measure(table, options=options.update(max_width=10_000)).maximum <= options.max_width:
                break
        return table, kept

    def _table(self, columns: Sequence[Column], *, wide: bool, folded: bool) -> Table:
        written = fold if folded else str
        leading = [Column("trial\n", lambda row: written(row.name), 0)]
        if not all(row.name.startswith(row.defense) for row in self._groups):
            leading.append(Column("defence\n", lambda row: written(row.defense), 0))
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold")
        table.add_column("", no_wrap=True)
        for column in leading:
            table.add_column(column.title)
        for column in columns:
            table.add_column(column.title, justify="right", no_wrap=True)

        def add(row: TrialGroup, marks: str, style: str) -> None:
            texts = [column.full(row) if wide else column.cell(row) for column in (*leading, *columns)]
            # Text, because rich would read "[...]" in a name as markup
            table.add_row(*map(Text, [marks, *texts]), style=style)

        for row in self._groups:
            marks = self._marks(row)
            style = "bold green" if PARETO in marks else ("" if row.comparable else "dim")
            add(row, "".join(mark.sign for mark in marks), style)
        for row in self._references:
            add(row, "", "")
        return table

    def _marks(self, row: TrialGroup) -> tuple[Mark, ...]:
        return marks_of(row, self._front, alone=len(self._groups) == 1)


def _unfinished(row: TrialRow) -> Text:
    lines = (row.error or "").strip().splitlines()
    return Text.assemble(
        (f" {row.status.lower()}", "bold red"),
        f"  {row.name}, {row.title}",
        f": {lines[0]}" if lines else "",
    )
