"""One MLflow run as its process sees it: write it down, try to deliver, close it however the block ends."""

from __future__ import annotations

import logging
import math
import time
import traceback
import uuid
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from fedveil.orchestrator.tracking.delivery import Sender
from fedveil.orchestrator.tracking.names import (
    ERROR_TAG,
    KIND_TAG,
    MAX_PARAM,
    MAX_TAG,
    NOT_FINITE,
    STOPPED_TAG,
    TRACEBACK_TAG,
    check_keys,
)
from fedveil.orchestrator.tracking.operations import Artifact, Close, Open, Operation, Params, Points, RunStatus, Tags
from fedveil.orchestrator.tracking.settings import TrackingSettings, without_passwords
from fedveil.orchestrator.tracking.spool import PENDING, Spool

_log = logging.getLogger(__name__)
_ERROR_LINE = 500


def now() -> int:
    """Milliseconds since the epoch."""
    return int(time.time() * 1000)


def cut(text: str, limit: int) -> str:
    """Return ``text``, or its beginning with an ellipsis where it is longer than ``limit``."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


class RunRecorder:
    """A context manager: an exception closes the run as FAILED, an interrupt or scheduler as KILLED, the end as FINISHED.

    No method raises for trouble with the server or the spool. For one thread.

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
        self._sender: Sender | None = None
        pending = run_id is not None and run_id.startswith(PENDING)
        token = run_id.removeprefix(PENDING) if run_id is not None and pending else uuid.uuid4().hex
        self._opening = Open(
            token=token,
            uri=settings.uri,
            experiment=settings.experiment,
            name=name,
            parent=parent,
            run_id=None if pending else run_id,
            tags={key: cut(value, MAX_TAG) for key, value in {**tags, KIND_TAG: kind}.items()},
            time=now(),
        )
        try:
            journal = self._spool.start(self._opening)
        except OSError as error:
            _log.error("this run is not recorded: the spool %s cannot be written: %s", self._spool.folder, error)
        else:
            token = journal.token
            self._sender = Sender(journal, retry_seconds=settings.retry_seconds)
        self._run_id = self._opening.run_id or PENDING + token
        self._record(Params({key: cut(str(value), MAX_PARAM) for key, value in params.items()}))

    @property
    def run_id(self) -> str:
        """The MLflow run id, or ``pending-...`` until the server has given one.

        Either is taken wherever a run id is asked for; keep it in the checkpoint to continue the same run.
        """
        if self._sender is not None and self._sender.journal.run_id is not None:
            self._run_id = self._sender.journal.run_id
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
        if self._sender is None:
            return
        try:
            copy = self._sender.journal.keep(path)
        except OSError as error:
            _log.error("%s is not recorded: %s", path, error)
            return
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
        with TemporaryDirectory() as scratch:
            path = Path(scratch) / target.name
            path.write_text(text, encoding="utf-8")
            self.log_file(path, None if target.parent == PurePosixPath() else str(target.parent))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; long values are cut."""
        check_keys(tags)
        self._record(Tags({key: cut(value, MAX_TAG) for key, value in tags.items()}))

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
            self._close(RunStatus.KILLED)

    def _points(self, values: Mapping[str, float], step: int) -> None:
        numbers = {key: float(value) for key, value in values.items()}
        finite = {key: value for key, value in numbers.items() if math.isfinite(value)}
        if finite:
            self._record(Points(finite, step=step, time=now()))
        lost = {NOT_FINITE + key: f"{value} at step {step}" for key, value in numbers.items() if key not in finite}
        if lost:
            self._record(Tags(lost))

    def _record(self, operation: Operation) -> None:
        if self._sender is None:
            return
        try:
            self._sender.journal.append(operation)
        except OSError as error:
            _log.error("not recorded: %s: %s", type(operation).__name__, error)
            return
        if self.settings.deliver:
            self._sender.deliver()

    def _close(self, status: RunStatus) -> None:
        if self._closed:
            return
        self._closed = True
        self._record(Close(status, now()))
        if self._sender is None or not self.settings.deliver:
            return
        journal = self._sender.journal
        delivered = self._sender.deliver(now=True)
        self._run_id = self.run_id  # the journal, which knows it, is deleted next
        if delivered:
            try:
                self._spool.sweep_up(journal)
            except OSError as error:
                _log.warning("%s was delivered but cannot be deleted: %s", journal.folder, error)
