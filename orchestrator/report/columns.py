"""The columns of the table of trials, on the screen and in the report, with what has to be said of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from fedveil.attacks.audit.figures import mse_text
from fedveil.orchestrator.metrics import metric
from fedveil.orchestrator.report.groups import TrialGroup

ABSENT = "–"
"""In the place of a number that there is not."""
Cell = Callable[[TrialGroup], str]
Note = Callable[[Sequence[TrialGroup]], str]


@dataclass(frozen=True)
class Column:
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

    @property
    def heading(self) -> str:
        """The title on one line."""
        return " ".join(self.title.replace("-\n", "").split())

    def full(self, row: TrialGroup) -> str:
        """The text of one setting where there is room."""
        return (self.wide or self.cell)(row)


def _text(name: str) -> Cell:
    write = metric(name).write
    return lambda row: write(row.metrics[name]) if name in row.metrics else ABSENT


def _metric(name: str, rank: int, note: Note = lambda rows: "") -> Column:
    """A column of numbers with their intervals, as far as there are any."""
    text, write = _text(name), metric(name).write

    def cell(row: TrialGroup) -> str:
        ends = row.interval(name)
        return text(row) + (f" ±{write(max(row.metrics[name] - ends[0], ends[1] - row.metrics[name]))}" if ends else "")

    def wide(row: TrialGroup) -> str:
        ends = row.interval(name)
        return text(row) + (f" [{write(ends[0])}, {write(ends[1])}]" if ends else "")

    return Column(metric(name).title, cell, rank, wide, note)


def _share(name: str, rank: int, note: str = "") -> Column:
    """A column of numbers whose intervals show where there is room for all columns."""
    return replace(_metric(name, rank), cell=_text(name), note=lambda rows: note)


def _param(name: str) -> Cell:
    def cell(row: TrialGroup) -> str:
        number = row.number(name)
        return ABSENT if number is None else f"{number:.3g}"

    return cell


def _with(first: Cell, second: Cell, form: str) -> Cell:
    """Both in one cell, unless both are absent."""

    def cell(row: TrialGroup) -> str:
        texts = first(row), second(row)
        return ABSENT if texts == (ABSENT, ABSENT) else form.format(*texts)

    return cell


def _seconds(row: TrialGroup) -> str:
    names = ("cost/train_seconds", "cost/attack_seconds")
    spent = [row.metrics[name] for name in names if name in row.metrics]
    return f"{sum(spent):.0f}" if spent else ABSENT


def _seeds(row: TrialGroup) -> str:
    return str(len(row.members)) if len(row.members) > 1 else ABSENT


def _about_attackers(rows: Sequence[TrialGroup]) -> str:
    judged = [m["privacy/judge_accuracy"] for m in (row.metrics for row in rows) if "privacy/judge_accuracy" in m]
    judge = f"right on {fmean(judged):.2f} of untouched originals" if judged else "trained on untouched images"
    return (
        f"Attacker accuracy: how often a judge of classes ({judge}) reads the true one, beside (chance: 1 / classes); "
        f"{ABSENT} where the judge is not clearly above chance or the attack inferred no class."
    )


_ATTACKER = _with(_text("privacy/attacker_accuracy"), _text("privacy/chance_accuracy"), "{} ({})")
_BOUNDS = _with(_text("privacy/trained_mse"), _text("privacy/baseline_mse"), "{} / {}")
_WEIGHTS = _with(_param("defense.privacy_weight"), _param("defense.utility_weight"), "{} / {}")
_ABOUT_BOUNDS = "'trained' is the error of the images that clients trained on, which a flawless inversion would find."

_ABOUT_OWN = "Own classifier: how often the attacker's own, trained against the defence and told no label, reads it."
_ABOUT_IDENTIFIED = "Identified: how often the victim's own image is found in a gallery."
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


COLUMNS = (
    Column("setting\n", lambda row: row.dial_text or ABSENT, 4),
    Column("weights\npriv. / util.", _WEIGHTS, 7),
    Column("seeds\n", _seeds, 2),
    _metric("utility/accuracy", 0),
    _metric("utility/clean_accuracy", 6),
    _metric("privacy/mse", 0, _about_errors),
    _metric("privacy/psnr", 5),
    _metric("privacy/ssim", 5),
    Column(metric("privacy/attacker_accuracy").title, _ATTACKER, 1, note=_about_attackers),
    _share("privacy/adaptive_attacker_accuracy", 2, _ABOUT_OWN),
    _share("privacy/identification_rate", 1, _ABOUT_IDENTIFIED),
    _share("inversion/attacker_accuracy", 1),
    _metric("inversion/mse", 1, _about_released),
    Column("MSE\ntrained / baseline", _BOUNDS, 3, note=lambda rows: _ABOUT_BOUNDS),
    Column("seconds\n", _seconds, 8),
)


def filled(rows: Sequence[TrialGroup]) -> list[Column]:
    """Return the columns that have something to say of one of the settings."""
    return [column for column in COLUMNS if any(column.cell(row) != ABSENT for row in rows)]


def explained(rows: Sequence[TrialGroup], columns: Sequence[Column], references: Sequence[TrialGroup]) -> list[str]:
    """Return sentences that say how to read the table.

    Args:
        rows: the settings that are shown.
        columns: those that are shown.
        references: what does without the federation, where that is shown too.
    """
    notes = [*(column.note(rows) for column in columns), _about_intervals(rows), _about_attacks(rows)]
    return [note for note in [*notes, _ABOUT_REFERENCES if references else ""] if note]


def _about_intervals(rows: Sequence[TrialGroup]) -> str:
    over = {"privacy/mse": "victims for privacy", "utility/accuracy": "seeds for an accuracy"}
    shown = [what for name, what in over.items() if any(row.interval(name) for row in rows)]
    return f"The 95 % intervals ([ ], or ± their longer side) are over {' and over '.join(shown)}." if shown else ""


def _about_attacks(rows: Sequence[TrialGroup]) -> str:
    """Name the attacks behind the headline."""
    defenses: dict[str, dict[str, None]] = defaultdict(dict)
    for row in rows:
        attack = row.headline_attack()
        if attack is not None:
            defenses[attack][row.defense] = None
    named = "; ".join(f"{attack} ({', '.join(those)})" for attack, those in defenses.items())
    return f"Worst-case MSE by {named}." if named else ""
