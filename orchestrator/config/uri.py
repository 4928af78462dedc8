"""Which tracking URIs there are, for the settings and for the commands that take one."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

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
