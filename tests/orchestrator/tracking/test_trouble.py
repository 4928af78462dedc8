from __future__ import annotations

import socket

import pytest
import requests
from mlflow.exceptions import MlflowException

from fedveil.orchestrator.tracking.trouble import no_answer, reason


def asked(address: str) -> Exception:
    """What a client of MLflow's raises: the transport's error, and an own one about it."""
    try:
        try:
            requests.get(address, timeout=0.2)
        except requests.RequestException as error:
            raise MlflowException(f"API request to {address} failed with exception {error}") from error
    except MlflowException as error:
        return error
    raise AssertionError(f"{address} answered")


def test_of_a_refused_connection_the_systems_word() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, so nobody else's; not listening, so refused
        error = asked(f"http://me:secret@127.0.0.1:{taken.getsockname()[1]}/api")
    assert no_answer(error)
    assert reason(error) == "Connection refused"


def test_of_a_server_that_is_mute() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # connected by the system; nobody accepts
        error = asked(f"http://127.0.0.1:{server.getsockname()[1]}/api")
    assert no_answer(error)
    assert reason(error) == "no answer in time"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MlflowException("RESOURCE_DOES_NOT_EXIST: no\n run"), "RESOURCE_DOES_NOT_EXIST: no run"),
        (RuntimeError("http://me:hunter2@host is odd"), "http://host is odd"),
        (KeyError(), "KeyError"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
    ],
)
def test_what_else_goes_wrong_is_said_as_it_is(error: Exception, said: str) -> None:
    assert not no_answer(error)
    assert reason(error) == said


def test_a_locked_database_is_no_answer_and_keeps_its_words() -> None:
    error = MlflowException("database is locked", error_code=0)
    error.error_code = "TEMPORARILY_UNAVAILABLE"
    assert no_answer(error)
    assert reason(error) == "database is locked"
