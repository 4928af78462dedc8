"""The table of trials on the screen: a line per setting."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from fedveil.attacks.audit.figures import mse_text
from fedveil.orchestrator.metrics import metric
from fedveil.orchestrator.report.groups import TrialGroup, group_seeds
from fedveil.orchestrator.report.matched import Records, matched_line
from fedveil.orchestrator.report.pareto import front_of
from fedveil.orchestrator.report.references import federating_line, reference_groups
from fedveil.orchestrator.report.rows import TrialRow

_ABSENT = "–"
_PARETO, _INCOMPLETE, _COLLAPSED, _WEAK = "★", "○", "↓", "?"
_MEANINGS = {
    _PARETO: "Pareto optimal",
    _INCOMPLETE: "incomplete: no adaptive attack ran, so this is no worst case",
    _COLLAPSED: "collapsed: the perturbed images no longer carry the task",
    _WEAK: "weak attack: its images do not explain the updates, by its own measure; give it more steps",
}
Cell = Callable[[TrialGroup], str]
Note = Callable[[Sequence[TrialGroup]], str]


@dataclass(frozen=True)
class _Column:
    """One column.

    Attributes:
        title: its heading, on two lines.
        cell: the text of one setting.
        rank: columns with a larger one are left out first where the console is narrow.
        wide: the text where there is room for all columns; None for the same.
        note: how to read it.
    """

    title: str
    cell: Cell
    rank: int
    wide: Cell | None = None
    note: Note = lambda rows: ""


def _text(name: str) -> Cell:
    write = metric(name).write
    return lambda row: write(row.metrics[name]) if name in row.metrics else _ABSENT


def _metric(name: str, rank: int, note: Note = lambda rows: "") -> _Column:
    """A column of numbers with their intervals, as far as there are any."""
    text, write = _text(name), metric(name).write

    def cell(row: TrialGroup) -> str:
        ends = row.interval(name)
        return text(row) + (f" ±{write(max(row.metrics[name] - ends[0], ends[1] - row.metrics[name]))}" if ends else "")

    def wide(row: TrialGroup) -> str:
        ends = row.interval(name)
        return text(row) + (f" [{write(ends[0])}, {write(ends[1])}]" if ends else "")

    return _Column(metric(name).title, cell, rank, wide, note)


def _share(name: str, rank: int) -> _Column:
    """A column of numbers whose intervals show where there is room for all columns."""
    return replace(_metric(name, rank), cell=_text(name))


def _param(name: str) -> Cell:
    def cell(row: TrialGroup) -> str:
        number = row.number(name)
        return _ABSENT if number is None else f"{number:.3g}"

    return cell


def _with(first: Cell, second: Cell, form: str) -> Cell:
    """Both in one cell, unless both are absent."""

    def cell(row: TrialGroup) -> str:
        texts = first(row), second(row)
        return _ABSENT if texts == (_ABSENT, _ABSENT) else form.format(*texts)

    return cell


def _seconds(row: TrialGroup) -> str:
    names = ("cost/train_seconds", "cost/attack_seconds")
    spent = [row.metrics[name] for name in names if name in row.metrics]
    return f"{sum(spent):.0f}" if spent else _ABSENT


def _seeds(row: TrialGroup) -> str:
    return str(len(row.members)) if len(row.members) > 1 else _ABSENT


def _about_attackers(rows: Sequence[TrialGroup]) -> str:
    judged = [m["privacy/judge_accuracy"] for m in (row.metrics for row in rows) if "privacy/judge_accuracy" in m]
    judge = f"right on {fmean(judged):.2f} of untouched originals" if judged else "trained on untouched images"
    return (
        f"Attacker accuracy: how often a judge of classes ({judge}) reads the true one, beside (chance: 1 / classes); "
        f"{_ABSENT} where the judge is not clearly above chance or the attack inferred no class."
    )


_ATTACKER = _with(_text("privacy/attacker_accuracy"), _text("privacy/chance_accuracy"), "{} ({})")
_BOUNDS = _with(_text("privacy/trained_mse"), _text("privacy/baseline_mse"), "{} / {}")
_WEIGHTS = _with(_param("defense.privacy_weight"), _param("defense.utility_weight"), "{} / {}")
_ABOUT_BOUNDS = "'trained' is the error of the images that clients trained on, which a flawless inversion would find."

_ABOUT_REFERENCES = (
    "'public only' and 'local only' do without the federation: classifiers that have the public images alone, or one"
    " client's own with them (mean over clients)."
)


def _about_errors(rows: Sequence[TrialGroup]) -> str:
    guesses = [m["privacy/baseline_mse"] for m in (row.metrics for row in rows) if "privacy/baseline_mse" in m]
    guess = f" ({mse_text(fmean(guesses))})" if guesses else ""
    return (
        "Privacy is the worst case over the attacks. MSE: higher is more private, from 0, an exact copy, to the baseline"
        f"{guess}, the guess of an attacker without the update: beyond it nothing more is gained."
    )


def _about_released(rows: Sequence[TrialGroup]) -> str:
    guesses = [m["inversion/baseline_mse"] for m in (row.metrics for row in rows) if "inversion/baseline_mse" in m]
    guess = f" ({mse_text(fmean(guesses))} by its label alone)" if guesses else ""
    return (
        "Released: attackers of the finished model; how often the class is read in what they paint, and the error of images"
        f" rebuilt from answers to clients' images{guess}."
    )


_COLUMNS = (
    _Column("setting\n", lambda row: row.dial_text or _ABSENT, 4),
    _Column("weights\npriv. / util.", _WEIGHTS, 7),
    _Column("seeds\n", _seeds, 2),
    _metric("utility/accuracy", 0),
    _metric("utility/clean_accuracy", 6),
    _metric("privacy/mse", 0, _about_errors),
    _metric("privacy/psnr", 5),
    _metric("privacy/ssim", 5),
    _Column(metric("privacy/attacker_accuracy").title, _ATTACKER, 1, note=_about_attackers),
    _share("privacy/adaptive_attacker_accuracy", 2),
    _share("privacy/identification_rate", 1),
    _share("inversion/attacker_accuracy", 1),
    _metric("inversion/mse", 1, _about_released),
    _Column("MSE\ntrained / baseline", _BOUNDS, 3, note=lambda rows: _ABOUT_BOUNDS),
    _Column("seconds\n", _seconds, 8),
)


class TrialTable:
    """A ``rich`` renderable: settings of finished trials with their marks, then the trials that failed with their errors.

    Trials that differ in their seed only are one line, see `group_seeds`. Below them stands what does without the
    federation, see `reference_groups`. Columns of lesser interest are left out where
    the console is too narrow for all, and so are columns without any number.

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
            shown = {mark for row in self._groups for mark in self._marks(row)}
            for mark, meaning in _MEANINGS.items():
                if mark in shown:
                    yield Text(f" {mark} {meaning}", style="dim")
            notes = [*(column.note(self._groups) for column in columns), self._intervals(), self._attacks()]
            notes.append(_ABOUT_REFERENCES if self._references else "")
            yield Text(" " + " ".join(filter(None, notes)), style="dim")
            for line in self._lines:
                yield Text(f" {line}")
        for row in self._rows:
            if not row.finished:
                yield _unfinished(row)

    def _intervals(self) -> str:
        over = {"privacy/mse": "victims for privacy", "utility/accuracy": "seeds for an accuracy"}
        shown = [what for name, what in over.items() if any(row.interval(name) for row in self._groups)]
        return f"The 95 % intervals ([ ], or ± their longer side) are over {' and over '.join(shown)}." if shown else ""

    def _attacks(self) -> str:
        """Name the attacks behind the headline."""
        defenses: dict[str, dict[str, None]] = defaultdict(dict)
        for row in self._groups:
            attack = row.headline_attack()
            if attack is not None:
                defenses[attack][row.defense] = None
        named = "; ".join(f"{attack} ({', '.join(those)})" for attack, those in defenses.items())
        return f"Worst-case MSE by {named}." if named else ""

    def _fitting_table(self, console: Console, options: ConsoleOptions) -> tuple[Table, list[_Column]]:
        columns = [column for column in _COLUMNS if any(column.cell(row) != _ABSENT for row in self._groups)]
        most = max(column.rank for column in _COLUMNS)
        for rank, wide in [(most, True), *((rank, False) for rank in range(most, -1, -1))]:
            kept = [column for column in columns if column.rank <= rank]
            table = self._table(kept, wide=wide)
            if console.measure(table, options=options.update(max_width=10_000)).maximum <= options.max_width:
                break
        return table, kept

    def _table(self, columns: Sequence[_Column], *, wide: bool) -> Table:
        leading = [_Column("trial\n", lambda row: row.name, 0)]
        if not all(row.name.startswith(row.defense) for row in self._groups):
            leading.append(_Column("defence\n", lambda row: row.defense, 0))
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold")
        table.add_column("", no_wrap=True)
        for column in leading:
            table.add_column(column.title)
        for column in columns:
            table.add_column(column.title, justify="right", no_wrap=True)

        def add(row: TrialGroup, marks: str, style: str) -> None:
            texts = [column.wide(row) if wide and column.wide else column.cell(row) for column in (*leading, *columns)]
            # Text, because rich would read "[...]" in a name as markup
            table.add_row(*map(Text, [marks, *texts]), style=style)

        for row in self._groups:
            add(row, self._marks(row), "bold green" if row in self._front else ("" if row.comparable else "dim"))
        for row in self._references:
            add(row, "", "")
        return table

    def _marks(self, row: TrialGroup) -> str:
        marks = {
            _PARETO: row in self._front,
            _INCOMPLETE: not row.complete,
            _COLLAPSED: row.collapsed,
            _WEAK: row.weakly_attacked,
        }
        return "".join(mark for mark, applies in marks.items() if applies)


def _unfinished(row: TrialRow) -> Text:
    lines = (row.error or "").strip().splitlines()
    return Text.assemble(
        (f" {row.status.lower()}", "bold red"),
        f"  {row.name}, {row.title}",
        f": {lines[0]}" if lines else "",
    )
