"""Databases that MLflow records in: the SQLite file of a fresh folder, and whether a server is there at all.

The file is built whole beside its place and then put there, by one process alone.
"""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

from filelock import FileLock

_SQLITE = "sqlite:///"
_LONGEST_BUILD = 300.0
"""Seconds to wait for another process that builds it."""
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_ANSWER = 5.0
"""Seconds within which a database server has to accept a connection."""
_one_at_a_time = threading.Lock()
"""The migrations keep what they do in globals: two threads that build two files, one of them left by an interrupted run for
example, wreck both."""


def build_database(uri: str) -> None:
    """Build MLflow's tables where ``uri`` is the plain one of a SQLite file that does not exist yet; else do nothing.

    MLflow itself builds them in place by some fifty migrations, and two processes that do so at once wreck the file.

    Raises:
        OSError: the folder cannot be written, or another process builds it for too long.
    """
    place = Path(uri.removeprefix(_SQLITE))
    if not uri.startswith(_SQLITE) or "?" in uri or _is_built(place):
        return
    lock = FileLock(place.with_name(f".{place.name}.lock"), timeout=_LONGEST_BUILD)
    with _one_at_a_time, lock:
        if not _is_built(place):
            _build_beside(place)
        Path(lock.lock_file).unlink(missing_ok=True)  # who waits for it still, or makes another, finds the file built


def reach(uri: str) -> None:
    """Return at once where ``uri`` is no database server's, or one that accepts connections.

    MLflow itself would ask ten times, for 100 s, and other stores would wait for that.

    Raises:
        OSError: nothing accepts a connection there.
    """
    scheme = uri.partition("://")[0].partition("+")[0]
    if scheme not in _PORTS:
        return
    from sqlalchemy.engine import make_url

    address = make_url(uri)
    if address.host:  # else a socket in the file system, or several hosts
        socket.create_connection((address.host, address.port or _PORTS[scheme]), timeout=_ANSWER).close()


def _build_beside(place: Path) -> None:
    scratch = place.with_name(f".{place.name}.new")
    scratch.unlink(missing_ok=True)  # of a process that died while it built
    try:
        _build(scratch)
        os.replace(scratch, place)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def _is_built(place: Path) -> bool:
    try:
        return place.stat().st_size > 0
    except FileNotFoundError:
        return False


def _build(place: Path) -> None:
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(f"{_SQLITE}{place}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH)  # type: ignore[no-untyped-call]
    store.engine.dispose()
