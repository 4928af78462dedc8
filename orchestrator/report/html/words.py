"""Settings and numbers in words."""

from __future__ import annotations

from collections.abc import Iterable

from fedveil.attacks.audit.figures import mse_text
from fedveil.orchestrator.report.groups import TrialGroup
from fedveil.orchestrator.report.references import UNDEFENDED


def called(row: TrialGroup) -> str:
    """Return what a setting's protection is called: with the value that says how much of it, ``latent k 5``."""
    return "no protection" if row.defense == UNDEFENDED else row.title


def named(row: TrialGroup) -> str:
    """Return a setting's name, and what its protection is called where the name does not say so."""
    return row.name if row.name.startswith(row.defense) else f"{row.name} ({called(row)})"


def percent(share: float) -> str:
    """Return a share in per cent, as exact as few images make it.

    >>> percent(0.5), percent(0.0167), percent(1.0)
    ('50 %', '1.7 %', '100 %')
    """
    return f"{100 * share:.1f} %" if 0 < share < 0.095 else f"{100 * share:.0f} %"


def percent_with_ends(row: TrialGroup, name: str) -> str:
    """Return a metric in per cent with its 95 % interval, where there is one."""
    ends = row.interval(name)
    return percent(row.metrics[name]) + (f" (95 % interval {percent(ends[0])} to {percent(ends[1])})" if ends else "")


def error_with_ends(row: TrialGroup, name: str) -> str:
    """Return a mean squared error with its 95 % interval, where there is one."""
    ends = row.interval(name)
    return mse_text(row.metrics[name]) + (
        f" (95 % interval {mse_text(ends[0])} to {mse_text(ends[1])})" if ends else ""
    )


def counted(number: int, one: str, several: str | None = None) -> str:
    """Return a count with its noun.

    >>> counted(1, "trial"), counted(3, "client"), counted(2, "is", "are")
    ('1 trial', '3 clients', '2 are')
    """
    return f"{number} {one if number == 1 else several or one + 's'}"


def joined(parts: Iterable[str], last: str = "and") -> str:
    """Return parts in a row.

    >>> joined(["a"]), joined(["a", "b"]), joined(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    *others, end = parts
    return f"{', '.join(others)} {last} {end}" if others else end
