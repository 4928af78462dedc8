"""Where the record goes and how much of the images it may hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

_SQLITE = "sqlite:///"
_USER = re.compile(
    r"""
    (\b(?:s3|abfs|oracle(?:\+\w+)?|[a-z]*sql(?:\+\w+)?)://) [^\s"]* @
    | (//) (?: [^/\s:@]* : (?!\d+(?:[/?#]|$)) [^\s"]* | [^/\s]* ) @
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""What stands before a host. Passwords may hold a slash and more; what looks like a port is none, but in the addresses of
object stores and databases, which have theirs behind the last ``@`` alone."""
_SECRET = re.compile(
    r"""
    ((?: \b[\w.-]{0,40}
        (?:password|passwd|passphrase|pwd|token|secret|(?:api|access|private)[_-]?key|credential|signature)
        [\w.-]{0,40}
        | (?<=[?&;]) (?:sig|key|auth)
    ) (?:=|%3D))
    (?: \{(?:[^}]|\}\})*\} | %7B(?:(?!%7D).)*%7D | (?:(?!%3B|%26)[^&;\s'"])+ )
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""``name=value`` in an address or in an ODBC connection text, which may be percent-encoded."""


class ImagePolicy(StrEnum):
    """Which images may leave for the MLflow server: reconstructed images of people are sensitive."""

    NONE = "none"
    GRID = "grid"
    """Only ``grid/*``: figures of a few victims side by side."""
    ALL = "all"
    """Grids, and each victim's own images: ``victim/<number>_<what>``."""

    def allows(self, key: str) -> bool:
        """Whether the picture ``key`` may leave."""
        return self is ImagePolicy.ALL or (self is ImagePolicy.GRID and key.startswith("grid/"))


def without_passwords(value: Any) -> Any:
    """Return a text, or plain data with texts in it, without the users, passwords and tokens of the addresses in it.

    >>> without_passwords({"tracking": {"uri": "http://user:secret@host:5000"}})
    {'tracking': {'uri': 'http://host:5000'}}
    >>> without_passwords("mssql://host/db?user=me&password=secret&driver=x")
    'mssql://host/db?user=me&password=***&driver=x'
    >>> without_passwords("s3://key:sec/ret@bucket/runs"), without_passwords("postgresql://me:1/2@host/db")
    ('s3://bucket/runs', 'postgresql://host/db')
    """
    if isinstance(value, str):
        return _SECRET.sub(r"\1***", _USER.sub(lambda found: found[1] or found[2], value))
    if isinstance(value, Mapping):
        return {key: without_passwords(one) for key, one in value.items()}
    return [without_passwords(one) for one in value] if isinstance(value, list) else value


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """Make it in the driver, in the user's folder: relative paths become absolute here; trials run elsewhere.

    Attributes:
        experiment: the MLflow experiment's name.
        uri: MLflow's tracking URI; default a SQLite file ``mlflow.db`` in the working folder.
        spool: folder for what is not delivered yet; default ``runs/<experiment>/spool``. It may hold images.
        images: see `ImagePolicy`.
    """

    experiment: str
    uri: str = f"{_SQLITE}mlflow.db"
    spool: Path | None = None
    images: ImagePolicy = ImagePolicy.GRID

    def __post_init__(self) -> None:
        if self.uri.startswith(_SQLITE):
            database = Path(self.uri.removeprefix(_SQLITE)).absolute()
            object.__setattr__(self, "uri", f"{_SQLITE}{database}")
        object.__setattr__(self, "spool", self.spool_folder)

    @property
    def spool_folder(self) -> Path:
        """The absolute spool folder."""
        folder = self.spool or Path("runs") / re.sub(r"[^\w.-]+", "_", self.experiment) / "spool"
        return folder.absolute()
