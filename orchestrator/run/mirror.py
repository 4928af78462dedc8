"""A copy of an experiment's folder at an address, an object store's for example: it outlives a job, which resumes from it.

All is written to a local folder first, as without an address, and sent from there now and then. What is sent while it is
written may be torn: resuming takes the last whole one, see `checkpoint` and `memory`.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from pyarrow import ArrowException
from pyarrow.fs import FileSelector, FileSystem, FileType

from fedveil.fl.errors import FedveilError
from fedveil.fl.sealed import write_whole
from fedveil.orchestrator.run.private import private_folder
from fedveil.orchestrator.tracking import without_passwords

EVERY = 30.0
"""Seconds between two times of sending."""
STALE = 4 * EVERY
"""Seconds without a sign of another process after which it is taken for dead."""
_SIGN = "running-"
_LAST = re.compile(r"(.*/)?(experiment_state-[^/]*|sweep)\.json")
"""What refers to other files, and is sent after them."""
_OWN = re.compile(r"(.*/)?(\.?lock|\.sweep\.lock|[^/]*\.(part|new|tmp)|\.tmp[^/]*)")
"""What is for the processes of this machine alone."""

Stamp = tuple[int, int]


class Place:
    """A folder at an address.

    Args:
        address: as in ``runs_dir``.

    Raises:
        FedveilError: it cannot be reached.
    """

    def __init__(self, address: str) -> None:
        self.address = without_passwords(address)
        with self.reached():
            system, base = FileSystem.from_uri(address)
        self._system: Any = system
        self._base = base.rstrip("/")

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Turn what goes wrong at the place into a sentence."""
        try:
            yield
        except (OSError, ArrowException) as error:
            raise FedveilError(
                f"runs_dir: {self.address}: {' '.join(without_passwords(str(error)).split())}"
            ) from error

    def times(self, below: str = "") -> dict[str, float]:
        """Return when each file below a folder was written, in seconds by the place's own clock, by path."""
        root = f"{self._base}/{below}".rstrip("/")
        found = self._system.get_file_info(FileSelector(root, recursive=True, allow_not_found=True))
        files = [info for info in found if info.type == FileType.File]
        return {info.path.removeprefix(f"{self._base}/"): info.mtime_ns / 1e9 for info in files}

    def read(self, name: str) -> bytes:
        """Return a file's content."""
        with self._system.open_input_stream(f"{self._base}/{name}") as stream:
            content: bytes = stream.read()
        return content

    def write(self, name: str, content: Any) -> None:
        """Write an open file, or bytes, as the file of that name."""
        path = f"{self._base}/{name}"
        try:
            stream = self._system.open_output_stream(path)
        except FileNotFoundError:  # where folders have to be made
            self._system.create_dir(str(PurePosixPath(path).parent), recursive=True)
            stream = self._system.open_output_stream(path)
        with stream:
            if isinstance(content, bytes):
                stream.write(content)
            else:
                shutil.copyfileobj(content, stream)

    def delete(self, name: str) -> None:
        """Delete a file that may be gone already."""
        with suppress(FileNotFoundError):
            self._system.delete_file(f"{self._base}/{name}")


class Mirror:
    """Sends a folder to a place.

    Only files that this process knows to have been in the folder are ever deleted there.

    Args:
        folder: local.
        place: for this folder alone.
    """

    def __init__(self, folder: Path, place: Place) -> None:
        self.place = place
        self._folder = folder
        self._sign = f"{_SIGN}{uuid.uuid4().hex}"
        self._sent: dict[str, Stamp] = {}
        self._signed = 0.0

    def claim(self) -> None:
        """Become the only one to write there.

        Raises:
            FedveilError: another process does, or has until a moment ago.
        """
        with self.place.reached():
            self._sign_of_life()
            signs = {name: at for name, at in self.place.times().items() if name.startswith(_SIGN)}
            now = signs.pop(self._sign)
            for name, at in signs.items():
                if now - at < STALE:
                    self.place.delete(self._sign)
                    raise FedveilError(
                        f"another run or sweep named {self._folder.name!r} writes into {self.place.address} (last sign of"
                        f" life {now - at:.0f} s ago): wait for its end, or give this one another name (experiment: NAME);"
                        f" if it was killed, wait {STALE - (now - at):.0f} s"
                    )
                self.place.delete(name)

    def release(self) -> None:
        """Leave the place to others."""
        self.place.delete(self._sign)

    def fetch(self, below: str = "") -> None:
        """Bring what is there and not here, or older here.

        Raises:
            FedveilError: the place does not answer.
        """
        with self.place.reached():
            for name, at in self.place.times(below).items():
                own = self._folder / name
                if name.startswith(_SIGN) or ".." in PurePosixPath(name).parts:
                    continue
                if not own.exists() or own.stat().st_mtime < at:
                    write_whole(own, [self.place.read(name)])
                    self._sent[name] = _stamp(own)

    def reserve(self, below: str) -> None:
        """Make the folders that are there below one, so that nobody takes their names anew."""
        with self.place.reached():
            taken = {name.removeprefix(f"{below}/").partition("/")[0] for name in self.place.times(below)}
        for name in taken - {".."}:
            private_folder(self._folder / below / name)

    def send(self) -> None:
        """Send what has changed, and delete there what is here no longer.

        Raises:
            OSError: the place does not take it.
        """
        self._sign_of_life()
        here = self._here()
        for name in sorted(here, key=lambda name: (_LAST.fullmatch(name) is not None, name)):
            if self._sent.get(name) == here[name]:
                continue
            try:
                with (self._folder / name).open("rb") as file:
                    self.place.write(name, file)
            except FileNotFoundError:  # gone meanwhile
                continue
            self._sent[name] = here[name]
            if time.monotonic() - self._signed > EVERY:
                self._sign_of_life()
        for name in self._sent.keys() - here.keys():
            self.place.delete(name)
            del self._sent[name]

    def _here(self) -> dict[str, Stamp]:
        found = {}
        for folder, _, names in os.walk(self._folder):
            for path in (Path(folder) / name for name in names):
                name = path.relative_to(self._folder).as_posix()
                try:
                    if not _OWN.fullmatch(name):
                        found[name] = _stamp(path)
                except FileNotFoundError:
                    continue
        return found

    def _sign_of_life(self) -> None:
        self.place.write(self._sign, f"{os.uname().nodename}, process {os.getpid()}\n".encode())
        self._signed = time.monotonic()


def _stamp(path: Path) -> Stamp:
    state = path.stat()
    return state.st_mtime_ns, state.st_size


@contextmanager
def mirrored(
    folder: Path, address: str | None, say: Callable[[str], None], *, resume: bool = False, every: float = EVERY
) -> Iterator[None]:
    """Keep a copy of a folder at an address while the block runs, and when it ends.

    What waits there for MLflow is brought first, and everything where that is to be resumed.

    Args:
        folder: of the experiment.
        address: of the copy; None for none.
        say: is told when the place does not take it.
        resume: the folder is to hold what is there.
        every: seconds between two times of sending.

    Raises:
        FedveilError: the place does not answer at the start, or another process writes there.
    """
    if address is None:
        yield
        return
    mirror = Mirror(private_folder(folder), Place(address))
    mirror.claim()
    try:
        mirror.fetch("" if resume else "spool")
        mirror.reserve("trials")
        with _sending(mirror, say, every):
            yield
    finally:
        with suppress(OSError, ArrowException):  # it becomes stale
            mirror.release()


@contextmanager
def _sending(mirror: Mirror, say: Callable[[str], None], every: float) -> Iterator[None]:
    over = threading.Event()
    troubled = False

    def send() -> bool:
        nonlocal troubled
        try:
            mirror.send()
        except (OSError, ArrowException) as error:
            if not troubled:
                reason = " ".join(without_passwords(str(error)).split())
                say(f"note: {mirror.place.address} does not take the runs, and is tried again: {reason}")
            troubled = True
            return False
        if troubled:
            say(f"note: {mirror.place.address} takes the runs again")
        troubled = False
        return True

    def work() -> None:
        while not over.wait(every):
            send()

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        yield
    finally:
        over.set()
        worker.join()
        if not send():
            say(f"note: {mirror.place.address} lacks the latest: it is in this machine's runs folder alone")
