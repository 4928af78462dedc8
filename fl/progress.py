"""A line in the log about long work: how far it is, and how long it will take. What is quick says nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

EVERY = 10.0
"""Seconds between two lines, and before the first."""

_log = logging.getLogger(__name__)
_DOING: ContextVar[tuple[str, ...]] = ContextVar("doing", default=())


class Pace:
    """Says now and then how far one piece of work is, from when it was made."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()

    def say(self, share: float, text: str) -> None:
        """Write a line with the seconds that are left, unless the last one was written a moment ago.

        Args:
            share: the part of the work that is done; the line is written where it is above 0 and below 1.
            text: the line's beginning.
        """
        now = time.monotonic()
        if now - self._last < EVERY or not 0 < share < 1:
            return
        self._last = now
        left = (now - self._began) * (1 - share) / share
        _log.info("%s, about %.0f s left", ": ".join((*_DOING.get(), text)), left)


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Put a name before the lines that are written inside, such as whose images the work is for."""
    before = _DOING.set((*_DOING.get(), what))
    try:
        yield
    finally:
        _DOING.reset(before)
