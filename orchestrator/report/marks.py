"""What makes a setting stand out, and what needs care in reading its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedveil.orchestrator.report.groups import TrialGroup


@dataclass(frozen=True)
class Mark:
    """A sign beside a setting.

    Attributes:
        sign: one character.
        meaning: in a line.
    """

    sign: str
    meaning: str


PARETO = Mark("★", "Pareto optimal")
INCOMPLETE = Mark("○", "incomplete: no adaptive attack ran, so this is no worst case")
COLLAPSED = Mark("↓", "collapsed: the perturbed images no longer carry the task")
WEAK = Mark("?", "weak attack: its images do not explain the updates, by its own measure; give it more steps")
MARKS = (PARETO, INCOMPLETE, COLLAPSED, WEAK)


def marks_of(row: TrialGroup, front: Sequence[TrialGroup], *, alone: bool) -> tuple[Mark, ...]:
    """Return a setting's marks.

    Args:
        row: the setting.
        front: those that no other beats.
        alone: there is no other setting, which makes it no winner.
    """
    marks = {
        PARETO: row in front and not alone,
        INCOMPLETE: not row.complete,
        COLLAPSED: row.collapsed,
        WEAK: row.weakly_attacked,
    }
    return tuple(mark for mark, applies in marks.items() if applies)
