"""Logins in tracking URIs: what is written to a disk lacks them, and a process that was given them adds them again."""

from __future__ import annotations

from fedveil.orchestrator.tracking.settings import without_passwords

_given: dict[str, str] = {}
"""Addresses with a login by what they are without it, of this process alone."""


def remember(uri: str) -> None:
    """Note the login of an address, if it has one, for as long as this process lives.

    Args:
        uri: MLflow's tracking URI.
    """
    bare = without_passwords(uri)
    if bare != uri:
        _given[bare] = uri


def with_login(uri: str) -> str:
    """Return an address with the login that this process was last given for it, or as it is."""
    return _given.get(uri, uri)
