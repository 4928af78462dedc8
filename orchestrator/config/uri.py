"""Which tracking URIs there are, and places for runs, for the settings and for the commands that take one."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from fedveil.fl.errors import brief

SQLITE = "sqlite:///"
_DATABASE = re.compile(r"(postgresql|mysql|mssql)(\+[a-z0-9_]+)?://.+")
_ALLOWED = (
    "allowed: sqlite:///FILE, http://HOST:PORT, https://HOST, a postgresql://, mysql:// or mssql:// address, databricks"
)


def uri_fault(uri: str) -> str | None:
    """Return what is allowed where ``uri`` is nothing that MLflow can record in, or None.

    Nothing is opened. Plain folders are out: MLflow no longer records in them.

    >>> uri_fault("sqlite:///mlflow.db")
    >>> uri_fault("./mlruns")[:26]
    'allowed: sqlite:///FILE, h'
    """
    return None if _usable(uri) else _ALLOWED


RUNS_SCHEMES = ("s3", "gs", "abfs", "hdfs")


def is_address(place: str) -> bool:
    """Return whether a place for runs is an address, not a folder.

    >>> is_address("s3://bucket/runs"), is_address("/mnt/shared/runs")
    (True, False)
    """
    return "://" in place


def runs_fault(place: str) -> str | None:
    """Return what is allowed where ``place`` is neither a folder nor an address that runs can be kept at, or None.

    Nothing is opened.

    >>> runs_fault("s3://bucket/runs")
    >>> runs_fault("http://server/runs")
    'allowed: a folder, or s3://BUCKET/FOLDER, gs://..., abfs://..., hdfs://...'
    """
    scheme, is_one, rest = place.partition("://")
    if "\0" in place or not place.strip() or (is_one and not (scheme in RUNS_SCHEMES and rest.strip("/"))):
        others = ", ".join(f"{one}://..." for one in RUNS_SCHEMES[1:])
        return f"allowed: a folder, or {RUNS_SCHEMES[0]}://BUCKET/FOLDER, {others}"
    return None


def place_fault(uri: str) -> str | None:
    """Return why the SQLite file of a tracking URI can't be made or written here, or None, as for other stores."""
    if not uri.startswith(SQLITE):
        return None
    file = Path(uri.removeprefix(SQLITE).partition("?")[0])
    try:
        if file.is_dir():
            return "this is a folder, name a file"
        if not file.parent.is_dir():
            return f"there is no folder {brief(file.parent)}: make it, or name another"
        there = file.exists()
    except OSError as error:
        return f"the file cannot be looked up ({error.strerror})"
    if there:
        return None if os.access(file, os.W_OK) else "the file cannot be written"
    return unwritable(file.parent)


def unwritable(folder: Path) -> str | None:
    """Return why no file can be made in a folder, by trying, or None."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"no file can be made in {brief(folder)} ({error.strerror or error})"


def _usable(uri: str) -> bool:
    if uri.startswith(SQLITE):
        return len(uri) > len(SQLITE)
    if _DATABASE.fullmatch(uri) or re.fullmatch(r"databricks(://.+)?", uri):
        return True
    try:
        parts = urlsplit(uri)
        # A port that is no number only shows when it is asked for.
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and " " not in uri
    except ValueError:
        return False
