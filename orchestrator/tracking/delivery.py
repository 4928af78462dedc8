"""From the spool to the server: at once where it answers, later where it does not, and never an exception."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedveil.orchestrator.tracking.operations import Artifact, Open, Operation, ParentMissingError
from fedveil.orchestrator.tracking.settings import without_passwords
from fedveil.orchestrator.tracking.spool import Journal, Spool

if TYPE_CHECKING:
    from fedveil.orchestrator.tracking.remote import RemoteRun

_log = logging.getLogger(__name__)
_LONGEST_WAIT = 12
"""The back-off doubles up to this many times the first wait."""


class Sender:
    """Delivers one journal in order, over however many attempts that takes.

    Attributes:
        refused: operations that the server refused for good.
        unreachable: the last attempt failed for a reason that other journals share.

    Args:
        journal: it has its first line.
        uri: where to; None for the URI in the journal.
        retry_seconds: the first wait after a failure.
    """

    def __init__(self, journal: Journal, *, uri: str | None = None, retry_seconds: float = 0.0) -> None:
        self.journal = journal
        self.refused = 0
        self.unreachable = False
        self._uri = uri
        self._retry_seconds = retry_seconds
        self._wait = retry_seconds
        self._not_before = 0.0
        self._run: RemoteRun | None = None
        self._acked = -1

    def deliver(self, *, now: bool = False) -> bool:
        """Send what is pending, unless the last failure is too recent; return whether nothing is left.

        Args:
            now: try although the last failure is recent.
        """
        if not now and time.monotonic() < self._not_before:
            return False
        try:
            with self.journal.delivering() as mine:
                if not mine:
                    return False
                self._deliver_all()
        except Exception as error:  # whatever goes wrong here is never the training's problem
            self._back_off(error)
            return False
        self._recovered()
        return True

    def _deliver_all(self) -> None:
        acked = self.journal.acked
        if acked != self._acked:
            self._run = None  # another process delivered since: what this one remembers of the run is stale
        self._acked = acked
        for number, operation in self.journal.read(acked):
            self._send(operation)
            self._acked = number + 1
            self.journal.acknowledge(self._acked)
            if isinstance(operation, Artifact):
                self.journal.drop(operation.source)

    def _send(self, operation: Operation) -> None:
        from fedveil.orchestrator.tracking.remote import refused_for_good

        run = self._run = self._run or self._connect()
        try:
            operation.send(run, self.journal.folder)
        except Exception as error:
            if isinstance(operation, Open) or not refused_for_good(error):
                raise
            self.refused += 1
            self.journal.reject(operation, error)
            _log.warning("MLflow refused %s; it is kept in %s: %s", operation, self.journal.folder, error)
        if isinstance(operation, Open):
            self.journal.name_run(run.run_id)

    def _connect(self) -> RemoteRun:
        from fedveil.orchestrator.tracking.remote import RemoteRun

        opening = self.journal.opening()
        if opening is None:
            raise ValueError(f"{self.journal.folder} does not begin with an opening line")
        return RemoteRun(self._uri or opening.uri, self.journal.run_id)

    def _back_off(self, error: Exception) -> None:
        if not self.unreachable:
            reason = without_passwords(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
            _log.warning("MLflow does not take the record; it is kept in %s. %s", self.journal.folder, reason)
        self.unreachable = not isinstance(error, ParentMissingError)
        self._not_before = time.monotonic() + self._wait
        self._wait = min(2 * self._wait, _LONGEST_WAIT * self._retry_seconds)

    def _recovered(self) -> None:
        if self.unreachable:
            _log.warning("MLflow answers again; the record is complete up to here")
        self.unreachable = False
        self._wait = self._retry_seconds
        self._not_before = 0.0


@dataclass(frozen=True)
class Replayed:
    """What `replay` did.

    Attributes:
        runs: runs whose journal is delivered now, whole.
        waiting: runs that could not be delivered (the server does not answer, or another process is at it).
        refused: operations that the server refused for good; they lie in the journals' ``rejected.jsonl``.
    """

    runs: int
    waiting: int
    refused: int


def replay(spool: Path, *, uri: str | None = None) -> Replayed:
    """Deliver all journals below ``spool``, parents first. Never raises for trouble with the server or the spool.

    The first journal for which no server answers ends the attempt: the others would only wait as long again.

    Args:
        spool: the spool folder of an experiment.
        uri: where to, if the server has moved; None for the URIs in the journals.
    """
    keeper = Spool(spool)
    runs = refused = 0
    journals: list[Journal] = []
    try:
        journals = keeper.journals()
        for journal in journals:
            sender = Sender(journal, uri=uri)
            if sender.deliver():
                runs += 1
                keeper.sweep_up(journal)
            refused += sender.refused
            if sender.unreachable:
                break
    except OSError as error:
        _log.warning("the spool %s cannot be read: %s", spool, error)
    return Replayed(runs=runs, waiting=len(journals) - runs, refused=refused)
