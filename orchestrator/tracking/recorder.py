"""One MLflow run as its process sees it: write it down, and close it however the block ends."""

from __future__ import annotations

import logging
import math
import time
import traceback
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from shutil import rmtree
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from fedveil.orchestrator.tracking.delivery import Sender
from fedveil.orchestrator.tracking.names import (
    ERROR_TAG,
    INCOMPLETE_TAG,
    INTERRUPT,
    KIND_TAG,
    MAX_PARAM,
    MAX_TAG,
    NOT_FINITE,
    STOPPED_TAG,
    TRACEBACK_TAG,
    check_keys,
    cut,
)
from fedveil.orchestrator.tracking.operations import Artifact, Close, Open, Operation, Params, Points, RunStatus, Tags
from fedveil.orchestrator.tracking.settings import TrackingSettings, without_passwords
from fedveil.orchestrator.tracking.spool import PENDING, Journal, Spool

_log = logging.getLogger(__name__)
_ERROR_LINE = 500


@dataclass(frozen=True)
class _Unkept:
    """A file that the disk did not take: in memory until it does."""

    name: str
    content: bytes
    folder: str | None

    def kept(self, beside: Path) -> Artifact:
        """Write it into a new folder; its path there is absolute.

        Raises:
            OSError: the disk does not take it.
        """
        beside.mkdir(parents=True, mode=0o700)
        try:
            file = beside / self.name
            file.touch(mode=0o600)
            file.write_bytes(self.content)
        except OSError:
            rmtree(beside, ignore_errors=True)
            raise
        return Artifact(str(file), self.folder)


def now() -> int:
    """Milliseconds since the epoch."""
    return int(time.time() * 1000)


class RunRecorder:
    """A context manager: an exception closes the run as FAILED, an interrupt or scheduler as KILLED, the end as FINISHED.

    No method raises for trouble with the server or the spool. What a full disk does not take is kept in memory, in
    order, until the disk takes it, and is sent without the disk where the run ends before; a run of which anything is
    lost all the same is never closed, and its sweep's end marks it as killed. For one thread.

    Args:
        settings: where to.
        kind: ``sweep`` or ``trial``.
        name: the run's name.
        parent: the parent's `run_id`, or None.
        params: flat; values are logged as text.
        tags: as text too.
        run_id: another recorder's `run_id`, whose run is to be continued; None for a new run.

    Raises:
        ValueError: the name of a param or tag is one that MLflow does not take.
    """

    def __init__(
        self,
        settings: TrackingSettings,
        *,
        kind: str,
        name: str,
        parent: str | None,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        run_id: str | None,
    ) -> None:
        check_keys([*params, *tags])
        self.settings = settings
        self._spool = Spool(settings.spool_folder)
        self._closed = False
        self._journal: Journal | None = None
        self._unwritten: deque[Operation | _Unkept] = deque()
        pending = run_id is not None and run_id.startswith(PENDING)
        token = run_id.removeprefix(PENDING) if run_id is not None and pending else uuid.uuid4().hex
        self._opening = Open(
            token=token,
            uri=settings.uri,
            experiment=settings.experiment,
            name=name,
            parent=parent,
            run_id=None if pending else run_id,
            tags=_texts({**tags, KIND_TAG: kind}, MAX_TAG),
            time=now(),
        )
        self._run_id = self._opening.run_id or PENDING + token
        with self._beginning():
            self._record(Params(_texts(params, MAX_PARAM)))

    @property
    def run_id(self) -> str:
        """The MLflow run id, or ``pending-...`` until the server has given one.

        Either is taken wherever a run id is asked for; keep it in the checkpoint to continue the same run.
        """
        if self._journal is not None:
            self._run_id = self._journal.run_id or self._run_id
        return self._run_id

    def log_file(self, path: Path | str, folder: str | None = None) -> None:
        """Record a copy of a file in the run's artifact folder ``folder``. It is not for images of people.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: ``folder`` leads out of the run's artifacts.
        """
        path = Path(path)
        if folder is not None and (PurePosixPath(folder).is_absolute() or ".." in PurePosixPath(folder).parts):
            raise ValueError(f"{folder!r} is not a folder below the run's artifacts")
        if not path.is_file():
            raise FileNotFoundError(f"no such file: {path}")
        try:
            copy = self._begun().keep(path)
        except OSError:
            self._record(_Unkept(path.name, path.read_bytes(), folder))
        else:
            self._record(Artifact(copy, folder))

    def log_dict(self, value: object, name: str) -> None:
        """Record plain data (dicts, lists, text, numbers) as the artifact ``name``: ``config/trial.yaml``.

        Raises:
            ValueError: ``name`` does not end in ``.yaml``.
        """
        from fedveil.orchestrator.config.yaml import (
            dump,
        )  # the configuration's settings of tracking import this package

        target = PurePosixPath(name)
        if target.suffix != ".yaml":
            raise ValueError(f"{name!r}: allowed ending: .yaml")
        text = dump(value)
        try:
            with TemporaryDirectory() as scratch:
                path = Path(scratch) / target.name
                path.write_text(text, encoding="utf-8")
                self.log_file(path, None if target.parent == PurePosixPath() else str(target.parent))
        except OSError as error:
            self._lost(name, error)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; long values are cut."""
        check_keys(tags)
        self._record(Tags(_texts(tags, MAX_TAG)))

    def fail(self, error: BaseException) -> None:
        """Close the run as FAILED, with the tags ``error`` (one line) and ``error.traceback`` (its end)."""
        line = without_passwords(" ".join(f"{type(error).__name__}: {error}".split()))
        trace = without_passwords("".join(traceback.format_exception(error)))
        self.set_tags({ERROR_TAG: cut(line, _ERROR_LINE), TRACEBACK_TAG: trace[-MAX_TAG:]})
        self._close(RunStatus.FAILED)

    def finish(self) -> None:
        """Close the run as FINISHED. Closing again does nothing."""
        self._close(RunStatus.FINISHED)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception):
            self.fail(error)
        elif error is None:
            self.finish()
        else:
            if isinstance(error, SystemExit) and not error.code:
                self.set_tags({STOPPED_TAG: "scheduler"})  # so Tune leaves a trial that its scheduler stops early
            elif isinstance(error, KeyboardInterrupt):
                self.set_tags({STOPPED_TAG: INTERRUPT})
            self._close(RunStatus.KILLED)

    @contextmanager
    def _beginning(self) -> Iterator[None]:
        """Close the run if an interrupt comes before it is entered: a server may know of it already."""
        try:
            yield
        except KeyboardInterrupt as error:
            self.__exit__(KeyboardInterrupt, error, error.__traceback__)
            raise

    def _points(self, values: Mapping[str, float], step: int) -> None:
        numbers = {key: float(value) for key, value in values.items()}
        finite = {key: value for key, value in numbers.items() if math.isfinite(value)}
        if finite:
            self._record(Points(finite, step=step, time=now()))
        lost = {NOT_FINITE + key: f"{value} at step {step}" for key, value in numbers.items() if key not in finite}
        if lost:
            self._record(Tags(lost))

    def _lost(self, what: str, error: OSError) -> None:
        """Say in the run that a file of it could not be kept."""
        _log.error("%s is not recorded: %s", what, error)
        self.set_tags({INCOMPLETE_TAG: f"{what} was not recorded: {error}"})

    def _begun(self) -> Journal:
        """The run's journal; made when the disk first takes it, and anew where the sweep closed it.

        Raises:
            OSError: it does not.
        """
        if self._journal is None or not self._journal.folder.exists():
            self._journal = self._spool.start(self._opening)
        return self._journal

    def _record(self, operation: Operation | _Unkept) -> None:
        waiting = bool(self._unwritten)
        self._unwritten.append(operation)
        try:
            journal = self._begun()
            while self._unwritten:
                first = self._unwritten[0]
                if isinstance(first, _Unkept):
                    copy = Path("files") / uuid.uuid4().hex[:12]
                    first.kept(journal.folder / copy)
                    first = self._unwritten[0] = Artifact(str(copy / first.name), first.folder)
                journal.append(first)
                self._unwritten.popleft()
        except OSError as error:
            if not waiting:
                _log.error("the spool %s cannot be written, the record waits in memory: %s", self._spool.folder, error)
        self._run_id = self.run_id  # whoever deletes the journal deletes what it knows of it

    def _close(self, status: RunStatus) -> None:
        if self._closed:
            return
        self._closed = True
        self._record(Close(status, now()))
        if self._journal is not None:
            self._journal.let_go()
        if self._unwritten:
            self._close_beyond()

    def _close_beyond(self) -> None:
        """The disk is still full: send what waits in memory, whoever else should deliver it."""
        try:
            with TemporaryDirectory() as scratch:  # of another disk, perhaps
                rest = [
                    one.kept(Path(scratch) / str(number)) if isinstance(one, _Unkept) else one
                    for number, one in enumerate(self._unwritten)
                ]
                sent = self._journal is not None and Sender(self._journal).deliver_beyond(rest)
        except OSError as error:
            _log.error("%s", error)
            sent = False
        if self._journal is None or not sent:
            _log.error("run %s is not recorded whole: %d entries are lost", self.run_id, len(self._unwritten))
            return
        self._run_id = self.run_id
        self._unwritten.clear()
        try:
            self._spool.discard(self._journal)
        except OSError as error:
            _log.warning("%s was delivered but cannot be deleted: %s", self._journal.folder, error)


def _texts(values: Mapping[str, object], limit: int) -> dict[str, str]:
    """Params or tags as they are recorded."""
    return {key: cut(without_passwords(str(value)), limit) for key, value in values.items()}
