"""What went wrong between MLflow's client and its store, in words for a person."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from fedveil.orchestrator.tracking.settings import without_passwords

LOGIN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"


def no_answer(error: BaseException) -> bool:
    """Whether the store itself is away: any other failure is one journal's own, and holds up no other."""
    import requests
    from sqlalchemy.exc import OperationalError

    silent = (
        ConnectionError,
        TimeoutError,
        requests.ConnectionError,
        requests.Timeout,
        OperationalError,
        socket.gaierror,
    )
    return any(
        isinstance(one, silent)
        # MLflow's word for a locked database.
        or str(getattr(one, "error_code", "")) == "TEMPORARILY_UNAVAILABLE"
        for one in _causes(error)
    )


def login_refused(error: BaseException) -> bool:
    """Whether an MLflow server does not know the user, or the password is another's."""
    return any("error code 401" in str(one) for one in _causes(error))


def reason(error: BaseException) -> str:
    """Return what an error says in one line, without passwords; of a connection that failed, what the system said of it.

    A client wraps that in four errors, each of which names the address anew.

    >>> reason(ValueError("no such\\n run"))
    'no such run'
    """
    if no_answer(error):
        for one in reversed([*_causes(error)]):
            if isinstance(one, OSError) and one.strerror:
                return one.strerror
            if isinstance(one, TimeoutError):
                return "no answer in time"
    if login_refused(error):
        return f"it refuses the login; {LOGIN}"
    said: str = without_passwords(" ".join(str(error).split()) or type(error).__name__)
    return said


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
