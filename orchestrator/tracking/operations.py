"""What can be sent to MLflow, one frozen dataclass each: a line of the spool and how that line is delivered.

Sending any of them twice leaves the same record as sending it once; `RemoteRun` sees to that.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict, TypeAdapter

from fedveil.orchestrator.tracking.logins import remember
from fedveil.orchestrator.tracking.settings import without_passwords
from fedveil.orchestrator.tracking.views import SweptKey

if TYPE_CHECKING:
    from fedveil.orchestrator.tracking.remote import RemoteRun


class ParentMissingError(Exception):
    """The parent run is not on the server yet: its own journal has to be delivered first."""


class DamagedLineError(Exception):
    """A line of the journal cannot be read: what it said is lost."""


class RunStatus(StrEnum):
    """How a run ended, in MLflow's words."""

    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"


@dataclass(frozen=True)
class Operation(ABC):
    """One thing to record."""

    by_name: ClassVar[dict[str, type[Operation]]] = {}
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    """How `decode` checks a line: what it does not know, it must not drop."""

    def __init_subclass__(cls) -> None:
        Operation.by_name[cls.__name__] = cls

    @abstractmethod
    def send(self, run: RemoteRun, folder: Path) -> None:
        """Deliver to ``run``; ``folder`` is the journal's, where copies of files lie."""

    def encode(self) -> str:
        """One line of JSON, without its line break."""
        return json.dumps({"operation": type(self).__name__, **asdict(self)}, allow_nan=False)

    @staticmethod
    def decode(line: str) -> Operation:
        """The inverse of `encode`.

        Raises:
            ValueError: this is no line that `encode` wrote, or another version's.
        """
        try:
            fields = json.loads(line)
            operation: Operation = _checked(fields.pop("operation")).validate_python(fields)
        except (AttributeError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"no operation: {line[:80]!r}") from error
        return operation


@cache
def _checked(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(Operation.by_name[name])


@dataclass(frozen=True)
class Open(Operation):
    """Create the run, or continue it. The first line of each journal.

    Attributes:
        token: the journal's name and the run's tag, made by the client.
        uri: MLflow's tracking URI. Its line has it without a login: who delivers it has been given that, or waits.
        experiment: the experiment's name.
        name: the run's name.
        parent: the parent's run id or pending name; None for a parent.
        run_id: the run to continue; None to find it by its token, or create it.
        tags: set when the run is created.
        time: milliseconds since the epoch.
    """

    token: str
    uri: str
    experiment: str
    name: str
    parent: str | None
    run_id: str | None
    tags: dict[str, str]
    time: int

    def __post_init__(self) -> None:
        remember(self.uri)

    def encode(self) -> str:
        """See `Operation.encode`."""
        return Operation.encode(replace(self, uri=without_passwords(self.uri)))

    def send(self, run: RemoteRun, folder: Path) -> None:
        """See `Operation.send`."""
        run.open(self)


@dataclass(frozen=True)
class Params(Operation):
    """Params, all text. One that the run has already keeps its value."""

    params: dict[str, str]

    def send(self, run: RemoteRun, folder: Path) -> None:
        """See `Operation.send`."""
        run.set_params(self.params)


@dataclass(frozen=True)
class Tags(Operation):
    """Tags of the run."""

    tags: dict[str, str]

    def send(self, run: RemoteRun, folder: Path) -> None:
        """See `Operation.send`."""
        run.set_tags(self.tags)


@dataclass(frozen=True)
class Points(Operation):
    """One value each of some metrics, all at the same step and time (milliseconds)."""

    values: dict[str, float]
    step: int
    time: int

    def send(self, run: RemoteRun, folder: Path) -> None:
        """See `Operation.send`."""
        run.log_points(self.values, step=self.step, time=self.time)


@dataclass(frozen=True)
class Artifact(Operation):
    """A file that was copied beside the journal, as ``source``, for the run's artifact folder ``folder``."""

    source: str
    folder: str | None

    def send(self, run: RemoteRun, folder: Path) -> None:
        """See `Operation.send`."""
        run.upload(folder / self.source, self.folder)


@dataclass(frozen=True)
class Close(Operation):
    """The run's final status."""

    status: str
    time: int

    def send(self, run: RemoteRun, folder: Path) -> None:
        """See `Operation.send`."""
        run.close(self.status, self.time)


@dataclass(frozen=True)
class CloseChildren(Operation):
    """Mark children that still run as killed: their process died without a word. A late close wins."""

    time: int

    def send(self, run: RemoteRun, folder: Path) -> None:
        """See `Operation.send`."""
        run.close_children(self.time)


@dataclass(frozen=True)
class DescribeExperiment(Operation):
    """Give the experiment its description and its saved view.

    Attributes:
        swept: each swept key as (key, space, numeric), see `SweptKey`.
        image_step: the step at which the view's image grid opens.
    """

    swept: list[tuple[str, str, bool]] = field(default_factory=list)
    image_step: int = 0

    def send(self, run: RemoteRun, folder: Path) -> None:
        """See `Operation.send`."""
        run.describe_experiment([SweptKey(*key) for key in self.swept], image_step=self.image_step)


@dataclass(frozen=True)
class Damaged(Operation):
    """Stands for a line of the journal that cannot be read.

    Attributes:
        line: as far as it is text.
    """

    line: str

    def send(self, run: RemoteRun, folder: Path) -> None:
        """There is nothing to send.

        Raises:
            DamagedLineError: always.
        """
        raise DamagedLineError("a line of the journal was damaged")
