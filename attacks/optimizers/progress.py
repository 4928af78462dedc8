"""How far a long attack is; the lines are those of `fedveil.fl.progress`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from fedveil.fl.progress import Pace


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
    _pace: Pace = field(default_factory=Pace)

    def share(self) -> float:
        """Return the part of the work that is done, between 0 and 1."""
        under_way = self.together * min(1.0, self.step / max(1, self.steps))
        return (self.done + under_way) / max(1, self.victims)

    def report(self) -> None:
        """Write a line, unless the last one was written a moment ago."""
        self._pace.say(
            self.share(),
            f"{self.attack}: {self.done} of {self.victims} victims done, step {self.step} of {self.steps}"
            f" for the next {self.together}",
        )


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
