"""The one exception that means "the user can mend this": it says what, where and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable


class FedveilError(Exception):
    """A problem that the user can mend: a bad setting, a damaged file, a missing download.

    The message is one line. The command line prints it without a traceback and exits with code 2.
    """


def unknown_name(what: str, given: str, allowed: Iterable[str]) -> FedveilError:
    """Return the error for a name that no registry holds, listing the names that are allowed."""
    return FedveilError(f"unknown {what} {given!r}; allowed: {', '.join(sorted(allowed))}")
