"""The spool on disk: a folder per run, with a journal of what is to be sent and a mark up to where it was."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fedveil.orchestrator.tracking.operations import Close, Open, Operation

PENDING = "pending-"
"""What a run is called until the server has given it an id: this and its token."""
_PRIVATE = 0o600
"""Who may read a lock: its owner, as with all that lies beside it."""


class Journal:
    """What one run has to say, line by line; any process of this machine may deliver it.

    Lines are only ever appended, by the one process whose run it is. The folder holds ``journal.jsonl``,
    ``acked`` (how many lines were delivered), ``run_id`` (once known), ``rejected.jsonl`` (what the server
    refused for good) and ``files/``. Only the owner may read it: artifacts may be images of people.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lines = folder / "journal.jsonl"

    @property
    def token(self) -> str:
        """The run's token, which is the folder's name."""
        return self.folder.name

    def append(self, operation: Operation) -> None:
        """Write ``operation`` down.

        Raises:
            OSError: the disk does not take it.
        """
        with self._lines.open("ab+") as lines:
            if lines.tell() and self._torn(lines.tell()):
                lines.write(b"\n")  # a process died while it wrote; the stump is skipped when read
            lines.write(operation.encode().encode() + b"\n")

    def _torn(self, size: int) -> bool:
        with self._lines.open("rb") as lines:
            lines.seek(size - 1)
            return lines.read(1) != b"\n"

    def keep(self, source: Path) -> str:
        """Copy a file beside the journal and return its path relative to the folder."""
        copy = self.folder / "files" / uuid.uuid4().hex[:12] / source.name
        copy.parent.mkdir(parents=True, mode=0o700)
        shutil.copyfile(source, copy)
        return str(copy.relative_to(self.folder))

    def drop(self, source: str) -> None:
        """Delete a copy that `keep` made."""
        shutil.rmtree((self.folder / source).parent, ignore_errors=True)

    @property
    def acked(self) -> int:
        """How many lines were delivered."""
        return int(self._read("acked") or 0)

    def acknowledge(self, lines: int) -> None:
        """Note that the first ``lines`` lines were delivered."""
        self._write("acked", str(lines))

    @property
    def run_id(self) -> str | None:
        """The MLflow run id, once known."""
        return self._read("run_id")

    def name_run(self, run_id: str) -> None:
        """Note the MLflow run id."""
        self._write("run_id", run_id)

    def reject(self, operation: Operation, error: Exception) -> None:
        """Set aside what the server refused for good, with its reason."""
        with (self.folder / "rejected.jsonl").open("a") as lines:
            lines.write(f"{operation.encode()}\n# {' '.join(str(error).split())}\n")

    def opening(self) -> Open | None:
        """The journal's first line, or None where a process died before it was whole."""
        first = next(self.read(), None)
        return first[1] if first is not None and isinstance(first[1], Open) else None

    def read(self, start: int = 0) -> Iterator[tuple[int, Operation]]:
        """Yield (line number, operation) for each whole line from ``start`` on."""
        if not self._lines.exists():
            return
        with self._lines.open("rb") as lines:
            for number, line in enumerate(lines):
                if number < start or not line.endswith(b"\n"):
                    continue
                try:
                    yield number, Operation.decode(line.decode())
                except ValueError:
                    continue  # the stump of a line, see `append`

    def complete(self) -> bool:
        """Whether the run was closed and everything was delivered."""
        last, lines = None, 0
        for number, operation in self.read():
            last, lines = operation, number + 1
        return isinstance(last, Close) and self.acked >= lines

    @contextmanager
    def delivering(self) -> Iterator[bool]:
        """Hold the right to deliver this journal; yields False where another process has it, or has delivered it all."""
        lock = FileLock(self.folder / "lock", timeout=0, mode=_PRIVATE)
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

    def _read(self, name: str) -> str | None:
        path = self.folder / name
        return path.read_text() if path.exists() else None

    def _write(self, name: str, text: str) -> None:
        scratch = self.folder / f"{name}.new"
        scratch.write_text(text)
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
        return journal

    def sweep_up(self, journal: Journal) -> None:
        """Delete the journal if all of it was delivered and nothing was refused."""
        with self._changing():
            refused = (journal.folder / "rejected.jsonl").exists()
            if journal.folder.exists() and journal.complete() and not refused:
                shutil.rmtree(journal.folder, ignore_errors=True)

    def journals(self) -> list[Journal]:
        """All journals, parents before children, then by age."""
        if not self.folder.exists():
            return []
        opened = []
        for folder in self.folder.iterdir():
            journal = Journal(folder)
            opening = journal.opening() if folder.is_dir() else None
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
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(self.folder / ".lock", mode=_PRIVATE):
            yield
