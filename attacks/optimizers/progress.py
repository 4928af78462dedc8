"""A line in the log about a long attack: how far it is, and how long it will take. Fast ones say nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

EVERY = 10.0
"""Seconds between two lines, and before the first."""

_log = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far an attack is.

    Attributes:
        attack: its name.
        victims: to attack, restarts counted.
        steps: evaluations of the gradient for each.
        done: victims that are finished.
        together: victims that are under way.
        step: evaluations that these have had.
    """

    attack: str
    victims: int
    steps: int
    done: int = 0
    together: int = 0
    step: int = 0
    _began: float = field(default_factory=lambda: time.monotonic())
    _last: float = field(default_factory=lambda: time.monotonic())

    def share(self) -> float:
        """Return the part of the work that is done, between 0 and 1."""
        under_way = self.together * min(1.0, self.step / max(1, self.steps))
        return (self.done + under_way) / max(1, self.victims)

    def report(self) -> None:
        """Write a line, unless the last one was written a moment ago."""
        now = time.monotonic()
        share = self.share()
        if now - self._last < EVERY or not 0 < share < 1:
            return
        self._last = now
        left = (now - self._began) * (1 - share) / share
        _log.info(
            "%s: %d of %d victims done, step %d of %d for the next %d, about %.0f s left",
            self.attack, self.done, self.victims, self.step, self.steps, self.together, left,
        )  # fmt: skip


_RUNNING: ContextVar[Progress | None] = ContextVar("progress", default=None)


@contextmanager
def progress(attack: str, *, victims: int, steps: int) -> Iterator[Progress]:
    """Report on an attack while it runs; optimisers inside call `evaluated`.

    Args:
        attack: its name.
        victims: to attack, restarts counted.
        steps: evaluations of the gradient for each.
    """
    running = Progress(attack, victims, steps)
    before = _RUNNING.set(running)
    try:
        yield running
    finally:
        _RUNNING.reset(before)


def begin(victims: int) -> None:
    """Say that so many victims are optimised together from now on; those before are done."""
    running = _RUNNING.get()
    if running is not None:
        running.done, running.together, running.step = running.done + running.together, victims, 0


def evaluated(steps: int) -> None:
    """Say that the victims under way have had so many evaluations more."""
    running = _RUNNING.get()
    if running is not None:
        running.step += steps
        running.report()
