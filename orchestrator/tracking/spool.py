"""The spool on disk: a folder per run, with a journal of what is to be sent and a mark up to where it was."""

from __future__ import annotations

import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from fedveil.fl.sealed import make_private
from fedveil.orchestrator.tracking.operations import Close, Damaged, Open, Operation
from fedveil.orchestrator.tracking.settings import without_passwords

_log = logging.getLogger(__name__)
JOURNAL = "journal.jsonl"
"""The file in a journal's folder that makes it one."""
PENDING = "pending-"
"""What a run is called until the server has given it an id: this and its token."""
_PRIVATE = 0o600
"""Who may read a file of the spool: its owner."""
_RUN_ID = re.compile(r"[0-9a-f]{32}")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, _PRIVATE)


@cache
def _say_once(trouble: str) -> None:
    """Say what every look at the spool finds again."""
    _log.error("%s", trouble)


class Journal:
    """What one run has to say, line by line; any process of this machine may deliver it.

    Lines are only ever appended, by the one process whose run it is. The folder holds ``journal.jsonl``,
    ``acked`` (how many lines were delivered), ``run_id`` (once known), ``rejected.jsonl`` (what the server
    refused for good) and ``files/``. Only the owner may read it: artifacts may be images of people.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lines = folder / JOURNAL
        self._life = FileLock(folder / "alive", timeout=0, mode=_PRIVATE, thread_local=False)

    def hold(self) -> None:
        """Let others know, until `let_go` or the end of this process, that the run's process lives."""
        with suppress(OSError):  # one that has lost its sweep, and has not ended yet, writes it, too
            self._life.acquire()

    def let_go(self) -> None:
        """End what `hold` began."""
        self._life.release()

    def orphaned(self) -> bool:
        """Whether the run was not closed and its process is dead."""
        if self.opening() is None or self.closed():
            return False
        try:
            with FileLock(self.folder / "alive", timeout=0, mode=_PRIVATE):
                return True
        except OSError:  # above all `Timeout`
            return False

    @property
    def token(self) -> str:
        """The run's token, which is the folder's name."""
        return self.folder.name

    def append(self, operation: Operation) -> None:
        """Write ``operation`` down.

        Raises:
            OSError: the disk does not take it.
        """
        with open(self._lines, "ab+", opener=_private) as lines:
            if lines.tell():
                lines.seek(-1, os.SEEK_END)
                if lines.read() != b"\n":  # a process died, or the disk was full, in the midst of a line
                    lines.seek(0)
                    lines.truncate(lines.read().rfind(b"\n") + 1)
            lines.write(operation.encode().encode() + b"\n")

    def keep(self, source: Path) -> str:
        """Copy a file beside the journal and return its path relative to the folder.

        Raises:
            OSError: the disk does not take it, and nothing of it is left.
        """
        copy = self.folder / "files" / uuid.uuid4().hex[:12] / source.name
        copy.parent.mkdir(parents=True, mode=0o700)
        try:
            with source.open("rb") as original, open(copy, "wb", opener=_private) as kept:
                shutil.copyfileobj(original, kept)
        except OSError:
            shutil.rmtree(copy.parent, ignore_errors=True)
            raise
        return str(copy.relative_to(self.folder))

    def drop(self, source: str) -> None:
        """Delete a copy that `keep` made."""
        shutil.rmtree((self.folder / source).parent, ignore_errors=True)

    @property
    def acked(self) -> int:
        """How many lines were delivered; 0 where the mark is damaged: what is sent twice leaves the same record."""
        mark = self._read("acked")
        known = mark.isdecimal() and int(mark) <= len(self._whole_lines()) and self.run_id is not None
        return int(mark) if known else 0

    def acknowledge(self, lines: int) -> None:
        """Note that the first ``lines`` lines were delivered."""
        self._write("acked", str(lines))

    @property
    def run_id(self) -> str | None:
        """The MLflow run id, once known; None where the note is damaged: the run is found by its token."""
        run_id = self._read("run_id")
        return run_id if _RUN_ID.fullmatch(run_id) else None

    def name_run(self, run_id: str) -> None:
        """Note the MLflow run id."""
        self._write("run_id", run_id)

    def reject(self, operation: Operation, error: Exception) -> None:
        """Set aside what the server refused for good, with its reason."""
        with open(self.folder / "rejected.jsonl", "a", opener=_private, encoding="utf-8", errors="replace") as lines:
            lines.write(f"{operation.encode()}\n# {without_passwords(' '.join(str(error).split()))}\n")

    def opening(self) -> Open | None:
        """The line that opens the run: the first, unless that is damaged; None where there is none."""
        return next((operation for _, operation in self.read() if isinstance(operation, Open)), None)

    def read(self, start: int = 0) -> Iterator[tuple[int, Operation]]:
        """Yield (line number, operation) for each whole line from ``start`` on; `Damaged` for one that cannot be read."""
        for number, line in enumerate(self._whole_lines()):
            if number < start:
                continue
            try:
                yield number, Operation.decode(line.decode())
            except ValueError:
                yield number, Damaged(line.decode("utf-8", "replace"))

    def _whole_lines(self) -> list[bytes]:
        """The lines without the stump of one that is being written, see `append`."""
        try:
            return self._lines.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:  # another process has delivered and deleted it
            return []

    def closed(self) -> bool:
        """Whether the run has ended and has not been opened again. A line that cannot be read says nothing of that."""
        marks = [operation for _, operation in self.read() if isinstance(operation, Open | Close)]
        return bool(marks) and isinstance(marks[-1], Close)

    def complete(self) -> bool:
        """Whether the run was closed and everything was delivered."""
        return self.closed() and self.acked >= len(self._whole_lines())

    @contextmanager
    def delivering(self, *, patience: float = 0.0) -> Iterator[bool]:
        """Hold the right to deliver this journal; yields False where another process has it, or has delivered it all.

        Args:
            patience: seconds to wait for the other process.
        """
        lock = FileLock(self.folder / "lock", timeout=patience, mode=_PRIVATE)
        mine = self.folder.exists()  # a lock would bring back the folder that another process swept up
        try:
            if mine:
                lock.acquire()
        except Timeout:
            mine = False
        try:
            yield mine
        finally:
            lock.release()

    def _read(self, name: str) -> str:
        try:
            return (self.folder / name).read_bytes().decode("ascii", "replace")
        except OSError:
            return ""

    def _write(self, name: str, text: str) -> None:
        scratch = self.folder / f"{name}.new"
        with open(scratch, "w", opener=_private) as file:
            file.write(text)
        os.replace(scratch, self.folder / name)


class Spool:
    """All journals of one experiment on this machine.

    Args:
        folder: it is made where it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, opening: Open) -> Journal:
        """Begin the run's journal, or go on with it, and write ``opening`` down.

        Where ``opening`` continues a run by its id, the journal that already knows this id is taken.
        """
        with self._changing():
            journal = self._of_run(opening.run_id) or Journal(self.folder / opening.token)
            journal.folder.mkdir(exist_ok=True, mode=0o700)
            journal.append(opening)
            journal.hold()
        return journal

    def bury(self, last_words: Sequence[Operation]) -> None:
        """Write into each journal whose run's process is dead, and closed nothing, how the run ended.

        Raises:
            OSError: the disk does not take it.
        """
        if not self.folder.exists():
            return
        with self._changing():
            for journal in self.journals():
                if journal.orphaned():
                    for operation in last_words:
                        journal.append(operation)

    def sweep_up(self, journal: Journal) -> None:
        """Delete the journal if all of it was delivered and nothing was refused."""
        with self._changing():
            if journal.folder.exists() and journal.complete():
                self._delete(journal)

    def discard(self, journal: Journal) -> None:
        """Delete the journal of a run that was delivered whole although not all of it is in the journal."""
        with self._changing():
            self._delete(journal)

    def _delete(self, journal: Journal) -> None:
        if not (journal.folder / "rejected.jsonl").exists():
            shutil.rmtree(journal.folder, ignore_errors=True)

    def journals(self) -> list[Journal]:
        """All journals that can be delivered, parents before children, then by age."""
        if not self.folder.exists():
            return []
        opened = []
        for folder in filter(Path.is_dir, self.folder.iterdir()):
            journal = Journal(folder)
            try:
                opening = journal.opening()
                if opening is None and any(journal.read()):
                    _say_once(
                        f"{folder} says nowhere which run it is of, and is not delivered: its first line is damaged"
                    )
            except OSError as error:
                _say_once(f"{folder} cannot be read, and is not delivered: {error}")
                continue
            if opening is not None:
                opened.append((opening.parent is not None, opening.time, journal.token, journal))
        return [journal for *_, journal in sorted(opened, key=lambda entry: entry[:3])]

    def _of_run(self, run_id: str | None) -> Journal | None:
        if run_id is None:
            return None
        return next((journal for journal in self.journals() if journal.run_id == run_id), None)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Folders come and go only under this lock: none is deleted while a resumed run takes it up."""
        make_private(self.folder)
        with FileLock(self.folder / ".lock", mode=_PRIVATE):
            yield
