"""The table of trials on the screen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from fedveil.attacks.scoring.utility import TradeOff, mse_at_accuracy
from fedveil.orchestrator.report.numbers import mse_text
from fedveil.orchestrator.report.pareto import TRADE_OFF, pareto_front
from fedveil.orchestrator.report.rows import TrialRow

_ABSENT = "–"
_PARETO, _INCOMPLETE, _COLLAPSED, _WEAK = "★", "○", "↓", "?"
_MEANINGS = {
    _PARETO: "Pareto optimal",
    _INCOMPLETE: "incomplete: no adaptive attack ran, so this is no worst case",
    _COLLAPSED: "collapsed: the perturbed images no longer carry the task",
    _WEAK: "weak attack: not even what the client trained on was rebuilt; give audit.inversion more steps",
}
_HOW_TO_READ = (
    "Privacy is the worst case over the attacks. MSE: higher is more private, 0 is an exact copy; 'perfect' "
    "is what a flawless inversion would reach, 'guess' what an attacker without the update does: beyond it "
    "nothing more is gained. Attacker accuracy stands beside (chance)."
)

Cell = Callable[[TrialRow], str]


@dataclass(frozen=True)
class _Column:
    """One column.

    Attributes:
        title: its heading, on two lines.
        cell: the text of one trial.
        rank: columns with a larger one are left out first where the console is narrow.
    """

    title: str
    cell: Cell
    rank: int


def _metric(name: str, text: Callable[[float], str]) -> Cell:
    return lambda row: text(row.metrics[name]) if name in row.metrics else _ABSENT


def _param(name: str) -> Cell:
    def cell(row: TrialRow) -> str:
        number = row.number(name)
        return _ABSENT if number is None else f"{number:.3g}"

    return cell


def _with(first: Cell, second: Cell, form: str) -> Cell:
    """Both in one cell, unless both are absent."""

    def cell(row: TrialRow) -> str:
        texts = first(row), second(row)
        return _ABSENT if texts == (_ABSENT, _ABSENT) else form.format(*texts)

    return cell


def _seconds(row: TrialRow) -> str:
    names = ("cost/train_seconds", "cost/attack_seconds")
    spent = [row.metrics[name] for name in names if name in row.metrics]
    return f"{sum(spent):.0f}" if spent else _ABSENT


_ATTACKER = _with(
    _metric("privacy/attacker_accuracy", "{:.2f}".format),
    _metric("privacy/chance_accuracy", "{:.2f}".format),
    "{} ({})",
)
_BOUNDS = _with(_metric("privacy/trained_mse", mse_text), _metric("privacy/baseline_mse", mse_text), "{} / {}")
_WEIGHTS = _with(_param("defense.privacy_weight"), _param("defense.utility_weight"), "{} / {}")

_COLUMNS = (
    _Column("strength\n", _param("defense.strength"), 2),
    _Column("weights\npriv. / util.", _WEIGHTS, 5),
    _Column("accuracy\n", _metric("utility/accuracy", "{:.3f}".format), 0),
    _Column("on clean\nimages", _metric("utility/clean_accuracy", "{:.3f}".format), 4),
    _Column("worst-case\nMSE", _metric("privacy/mse", mse_text), 0),
    _Column("PSNR\ndB", _metric("privacy/psnr", "{:.1f}".format), 3),
    _Column("SSIM\n", _metric("privacy/ssim", "{:.2f}".format), 3),
    _Column("attacker\naccuracy", _ATTACKER, 1),
    _Column("identi-\nfied", _metric("privacy/identification_rate", "{:.2f}".format), 4),
    _Column("MSE\nperfect / guess", _BOUNDS, 2),
    _Column("seconds\n", _seconds, 6),
)


class TrialTable:
    """A ``rich`` renderable: finished trials with their marks, then those that failed with their errors.

    Columns of lesser interest are left out where the console is too narrow for all.

    Args:
        rows: the trials of one sweep, in any order; they are shown by defence and strength.
    """

    def __init__(self, rows: Sequence[TrialRow]) -> None:
        self._rows = sorted(rows, key=lambda row: (row.defense, row.strength or 0.0, row.name))
        self._front = {id(row) for row in pareto_front([r for r in rows if r.comparable], TRADE_OFF)}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table, what its marks mean, and one line for each trial that did not finish."""
        finished = [row for row in self._rows if row.finished]
        if finished:
            yield self._fitting_table(finished, console, options)
            shown = {mark for row in finished for mark in self._marks(row)}
            for mark, meaning in _MEANINGS.items():
                if mark in shown:
                    yield Text(f" {mark} {meaning}", style="dim")
            yield Text(f" {_HOW_TO_READ}", style="dim")
            matched = matched_line([row for row in finished if row.comparable])
            if matched:
                yield Text(f" {matched}")
        for row in self._rows:
            if not row.finished:
                yield _unfinished(row)

    def _fitting_table(self, rows: Sequence[TrialRow], console: Console, options: ConsoleOptions) -> Table:
        for rank in range(max(column.rank for column in _COLUMNS), 0, -1):
            table = self._table(rows, [column for column in _COLUMNS if column.rank <= rank])
            if console.measure(table, options=options.update(max_width=10_000)).maximum <= options.max_width:
                return table
        return self._table(rows, [column for column in _COLUMNS if column.rank == 0])

    def _table(self, rows: Sequence[TrialRow], columns: Sequence[_Column]) -> Table:
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold")
        table.add_column("", no_wrap=True)
        table.add_column("trial\n")
        table.add_column("defence\n")
        for column in columns:
            table.add_column(column.title, justify="right", no_wrap=True)
        for row in rows:
            cells = [self._marks(row), row.name, row.defense, *(column.cell(row) for column in columns)]
            style = "bold green" if id(row) in self._front else ("" if row.comparable else "dim")
            # Text, because rich would read "[...]" in a name as markup
            table.add_row(*map(Text, cells), style=style)
        return table

    def _marks(self, row: TrialRow) -> str:
        marks = {
            _PARETO: id(row) in self._front,
            _INCOMPLETE: not row.complete,
            _COLLAPSED: row.collapsed,
            _WEAK: row.weakly_attacked,
        }
        return "".join(mark for mark, applies in marks.items() if applies)


def matched_line(rows: Sequence[TrialRow]) -> str:
    """Compare defences at one accuracy: the highest that every defence with several trials reaches.

    Empty where fewer than two defences have trials on both sides of it.
    """
    curves: dict[str, list[TradeOff]] = {}
    for row in rows:
        if TRADE_OFF.keys() <= row.metrics.keys():
            point = TradeOff(row.metrics["utility/accuracy"], row.score("privacy/mse"))
            curves.setdefault(row.defense, []).append(point)
    curves = {defense: curve for defense, curve in curves.items() if len(curve) > 1}
    if not curves:
        return ""
    accuracy = min(max(point.accuracy for point in curve) for curve in curves.values())
    found = {defense: mse_at_accuracy(curve, accuracy) for defense, curve in curves.items()}
    known = {defense: error for defense, error in found.items() if error is not None}
    if len(known) < 2:
        return ""
    ranked = sorted(known.items(), key=lambda item: -item[1])
    return f"At accuracy {accuracy:.3f} the MSE is " + ", ".join(f"{mse_text(e)} for {name}" for name, e in ranked)


def _unfinished(row: TrialRow) -> Text:
    lines = (row.error or "").strip().splitlines()
    strength = "" if row.strength is None else f" at strength {row.strength:.3g}"
    return Text.assemble(
        (f" {row.status.lower()}", "bold red"),
        f"  {row.name}, {row.defense}{strength}",
        f": {lines[0]}" if lines else "",
    )
