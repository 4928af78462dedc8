"""A line in the log about long work: how far it is, and how long it will take. What is quick says nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

EVERY = 10.0
"""Seconds between two lines, and before the first."""

_TELLING = 0.01
"""Less than this part of the work says nothing of the rest: the first step is often the slowest by far."""
_SECONDS, _MINUTES = 100, 100 * 60
"""Below so many seconds a length of time is told in seconds, and in minutes."""

_log = logging.getLogger(__name__)
_DOING: ContextVar[tuple[str, ...]] = ContextVar("doing", default=())


def duration(seconds: float) -> str:
    """Return a length of time as precisely as anybody wants to know it beforehand.

    >>> duration(42), duration(200), duration(9000)
    ('42 s', '3 min', '2.5 h')
    """
    if seconds < _SECONDS:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < _MINUTES else f"{seconds / 3600:.1f} h"


class Pace:
    """Says now and then how far one piece of work is, from when it was made."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()

    def say(self, share: float, text: str, *, most: bool = False) -> None:
        """Write a line with the time that is left, as far as that can be told, unless the last one was written a moment ago.

        Args:
            share: the part of the work that is done; the line is written where it is above 0 and below 1.
            text: the line's beginning.
            most: the work may end earlier than that.
        """
        now = time.monotonic()
        if now - self._last < EVERY or not 0 < share < 1:
            return
        self._last = now
        line = ": ".join((*_DOING.get(), text))
        if share < _TELLING:
            _log.info("%s", line)
            return
        left = (now - self._began) * (1 - share) / share
        _log.info("%s, about %s left%s", line, duration(left), " if it goes to its end" if most else "")


def paced(steps: int, what: str) -> Iterator[int]:
    """Yield ``range(steps)``, and say after a step how far that is."""
    pace = Pace()
    for step in range(steps):
        yield step
        pace.say((step + 1) / steps, f"{what}: step {step + 1} of {steps}")


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Put a name before the lines that are written inside, such as whose images the work is for."""
    before = _DOING.set((*_DOING.get(), what))
    try:
        yield
    finally:
        _DOING.reset(before)
