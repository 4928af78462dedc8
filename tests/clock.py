"""A clock that tests set."""

from __future__ import annotations


class Clock:
    """Stands in for the module ``time``."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        """Return the seconds that the test has set."""
        return self.now
