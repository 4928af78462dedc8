"""What the user is told: the exception that means "you can mend this", which says what, where and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST = 200
"""Characters of a value that a message shows."""


def brief(text: object) -> str:
    """Return a text for a message of one line: control characters are escaped, and a long one loses its middle.

    >>> brief("folder:scans"), len(brief("x" * 5000))
    ('folder:scans', 200)
    """
    shown = str(text)
    if not shown.isprintable():
        shown = repr(shown)[1:-1]
    head = LONGEST - 60
    return shown if len(shown) <= LONGEST else f"{shown[:head]}...{shown[-57:]}"


class FedveilError(Exception):
    """A problem that the user can mend: a bad setting, a damaged file, a missing download.

    The message is one line. The command line prints it without a traceback and exits with code 2.

    >>> import fedveil as fv
    >>> try:
    ...     fv.load_data('mni153')
    ... except fv.FedveilError as error:
    ...     print(str(error)[:24])
    unknown data set 'mni153
    """


class TrialError(FedveilError):
    """A trial failed by an error that nobody foresaw; the message says which, and where its traceback is."""


class FedveilWarning(UserWarning):
    """Something that the user should know and that stops nothing, in one line; the command line prints it once."""


class SettingError(FedveilError):
    """One hyperparameter that its class refuses.

    Args:
        what: whose, for example ``strategy fedprox``.
        key: the hyperparameter.
        value: what was given.
        rule: what is allowed, as the second half of a sentence.
    """

    def __init__(self, what: str, key: str, value: object, rule: str) -> None:
        super().__init__(what, key, value, rule)
        self.key, self.value, self.rule = key, value, rule
        self._what = what

    def __str__(self) -> str:
        return f"{self._what}: {self.key} is {brief(self.value)}; {self.rule}"


def unknown_name(what: str, given: str, allowed: Iterable[str]) -> FedveilError:
    """Return the error for a name that no registry holds, listing the names that are allowed."""
    return FedveilError(f"unknown {what} {brief(repr(given))}; allowed: {', '.join(sorted(allowed))}")
