"""From the spool to the server: at once where it answers, later where it does not, and never an exception."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from fedveil.orchestrator.interrupts import uninterrupted
from fedveil.orchestrator.tracking.logins import with_login
from fedveil.orchestrator.tracking.names import INCOMPLETE_TAG, cut
from fedveil.orchestrator.tracking.operations import Artifact, DamagedLineError, Open, Operation
from fedveil.orchestrator.tracking.spool import Journal, Spool
from fedveil.orchestrator.tracking.trouble import no_answer, reason

if TYPE_CHECKING:
    from fedveil.orchestrator.tracking.remote import RemoteRun

_log = logging.getLogger(__name__)
_waiting: set[Path] = set()
"""Folders of the journals of which this process has said that MLflow does not take them."""
_REASON = 300
_PATIENCE = 60.0
"""Seconds to wait for another process that delivers, where nobody will try again."""


class Sender:
    """One attempt to deliver a journal, in order, from where the last one ended.

    Attributes:
        refused: operations that the server refused for good, and lines that were damaged.
        unanswered: nothing answered at `uri`, as nothing will for other journals.

    Args:
        journal: it has its first line.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.refused = 0
        self.unanswered = False
        self._run: RemoteRun | None = None

    @cached_property
    def uri(self) -> str:
        """Where to, with the login that this process has been given for it.

        Raises:
            ValueError: the journal does not say.
        """
        return with_login(self._opening().uri)

    def _opening(self) -> Open:
        opening = self.journal.opening()
        if opening is None:
            raise ValueError(f"{self.journal.folder} has no opening line")
        return opening

    def deliver(self) -> bool:
        """Send what is pending; return whether nothing is left."""
        return self._deliver((), patience=0.0)

    def deliver_beyond(self, rest: Sequence[Operation]) -> bool:
        """Send what is pending, and then what the disk did not take; return whether all of it was sent."""
        return self._deliver(rest, patience=_PATIENCE)

    def _deliver(self, rest: Sequence[Operation], *, patience: float) -> bool:
        try:
            with self.journal.delivering(patience=patience) as mine:
                if not mine:
                    return False
                self._deliver_all()
                for operation in rest:
                    self._send(operation)
        except Exception as error:  # whatever goes wrong here is never the training's problem
            self._failed(error)
            return False
        self._recovered()
        return True

    def _deliver_all(self) -> None:
        for number, operation in self.journal.read(self.journal.acked):
            self._send(operation)
            try:
                self.journal.acknowledge(number + 1)
            except OSError as error:  # sent once more, it leaves the same record
                _log.debug("%s: %s", self.journal.folder, error)
                continue
            if isinstance(operation, Artifact):
                self.journal.drop(operation.source)

    def _send(self, operation: Operation) -> None:
        from fedveil.orchestrator.tracking.remote import refused_for_good

        run = self._run = self._run or self._connect()
        if not run.is_open and not isinstance(operation, Open):
            self._send(self._opening())  # it is not the first line, since that is damaged
        with uninterrupted():
            try:
                operation.send(run, self.journal.folder)
            except Exception as error:
                if isinstance(operation, Open) or not (isinstance(error, DamagedLineError) or refused_for_good(error)):
                    raise
                self._set_aside(run, operation, error)
            if isinstance(operation, Open):
                try:
                    self.journal.name_run(run.run_id)
                except OSError as error:  # it is found by its token
                    _log.debug("%s: %s", self.journal.folder, error)

    def _set_aside(self, run: RemoteRun, operation: Operation, error: Exception) -> None:
        """Say in the run what it lacks, and keep it."""
        from fedveil.orchestrator.tracking.remote import refused_for_good

        what = f"{type(operation).__name__} was not recorded: {cut(reason(error), _REASON)}"
        try:
            run.set_tags({INCOMPLETE_TAG: what})
        except Exception as trouble:
            if not refused_for_good(trouble):
                raise
        self.journal.reject(operation, error)
        self.refused += 1
        _log.warning("%s; it is kept in %s", what, self.journal.folder)

    def _connect(self) -> RemoteRun:
        from fedveil.orchestrator.tracking.remote import RemoteRun

        return RemoteRun(self.uri, self.journal.run_id)

    def _failed(self, error: Exception) -> None:
        if self.journal.folder not in _waiting:
            _log.warning(
                "MLflow does not take the record (%s); it is kept in %s",
                cut(reason(error), _REASON),
                self.journal.folder,
            )
        _waiting.add(self.journal.folder)
        self.unanswered = no_answer(error)

    def _recovered(self) -> None:
        if self.journal.folder in _waiting:
            _log.warning("MLflow answers again; the record is complete up to here")
        _waiting.discard(self.journal.folder)


@dataclass(frozen=True)
class Replayed:
    """What `replay` did.

    Attributes:
        runs: runs whose journal is delivered now, whole.
        waiting: runs that could not be delivered (the server does not answer, or another process is at it).
        refused: operations that the server refused for good, and damaged lines: see the journals' ``rejected.jsonl``.
    """

    runs: int
    waiting: int
    refused: int


def replay(spool: Path) -> Replayed:
    """Deliver all journals below ``spool``, parents first. Never raises for trouble with the server or the spool.

    A store that does not answer is asked once: other journals for it would only wait as long again. Stores have a thread
    each, so that none holds up another.

    Args:
        spool: the spool folder of an experiment.
    """
    keeper = Spool(spool)
    journals: list[Journal] = []
    stores: dict[str, list[Sender]] = {}
    try:
        journals = keeper.journals()
    except OSError as error:
        _log.warning("the spool %s cannot be read: %s", spool, error)
    for sender in map(Sender, journals):
        try:
            stores.setdefault(sender.uri, []).append(sender)
        except (OSError, ValueError) as error:  # another process delivers and deletes it meanwhile, or it is not ours
            _log.warning("%s: %s", sender.journal.folder, error)
    delivered: list[int] = []
    threads = [Thread(target=_deliver_to_one, args=(keeper, own, delivered), daemon=True) for own in stores.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs, refused = sum(delivered), sum(sender.refused for own in stores.values() for sender in own)
    return Replayed(runs=runs, waiting=len(journals) - runs, refused=refused)


def _deliver_to_one(keeper: Spool, senders: Sequence[Sender], delivered: list[int]) -> None:
    """Deliver one store's journals, and add how many runs are whole now; end where it does not answer."""
    runs = 0
    for sender in senders:
        try:
            if sender.deliver():
                runs += 1
                keeper.sweep_up(sender.journal)
        except (OSError, ValueError) as error:
            _log.warning("%s: %s", sender.journal.folder, error)
            continue
        if sender.unanswered:
            break
    delivered.append(runs)
