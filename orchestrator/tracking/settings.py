"""Where the record goes and how much of the images it may hold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

_SQLITE = "sqlite:///"


class ImagePolicy(StrEnum):
    """Which images may leave for the MLflow server: reconstructed images of people are sensitive."""

    NONE = "none"
    GRID = "grid"
    """Only ``grid/*``: figures of a few victims side by side."""
    ALL = "all"
    """Grids, and each victim's own images as ``victim/*``."""


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """Make it in the driver, in the user's folder: relative paths become absolute here; trials run elsewhere.

    Attributes:
        experiment: the MLflow experiment's name.
        uri: MLflow's tracking URI; default a SQLite file ``mlflow.db`` in the working folder.
        spool: folder for what is not delivered yet; default ``runs/<experiment>/spool``. It may hold images.
        images: see `ImagePolicy`.
        deliver: send from this process. False only writes to the spool (and spares the process the import of
            MLflow); then another process on this machine has to deliver, see `SweepTracker.deliver`.
        retry_seconds: wait this long after a failed delivery, then twice as long each time, up to 12 times.
    """

    experiment: str
    uri: str = f"{_SQLITE}mlflow.db"
    spool: Path | None = None
    images: ImagePolicy = ImagePolicy.GRID
    deliver: bool = True
    retry_seconds: float = 10.0

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
