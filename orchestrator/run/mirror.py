"""A copy of an experiment's folder at an address, an object store's for example: it outlives a job, which resumes from it.

All is written to a local folder first, as without an address, and sent from there now and then. What is sent while it is
written may be torn: resuming takes the last whole one, see `checkpoint` and `memory`.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedveil.fl.errors import FedveilError
from fedveil.fl.sealed import write_whole
from fedveil.orchestrator.run.place import TROUBLE, Place, said
from fedveil.orchestrator.run.private import private_folder
from fedveil.orchestrator.tracking.spool import JOURNAL

EVERY = 30.0
"""Seconds between two times of sending."""
STALE = 4 * EVERY
"""Seconds without a sign of another process after which it is taken for dead."""
SOON = 5.0
"""Seconds until the first time."""
AGAIN = (1.0, 4.0, 15.0, 40.0)
"""Seconds between the attempts to send what the place did not take at the end."""
AT_THE_END = 60.0
"""Seconds after which there is no further attempt."""
LONG = 5.0
"""Seconds after which a refusal is that of a place which does not answer: nothing else is sent there now."""
_SIGN = "running-"
_LAST = re.compile(r"(.*/)?(experiment_state-[^/]*|sweep|run)\.json")
"""What refers to other files, and is sent after them."""
_OF_A_RECORD = re.compile(r"spool/[^/]+/")
_SENDINGS = ".sent.json"
_OWN = re.compile(r"(.*/)?(\.?lock|\.sweep\.lock|\.sent\.json|[^/]*\.(part|new|tmp)|\.tmp[^/]*)")
"""What is for the processes of this machine alone."""
Stamp = tuple[int, int]


class Mirror:
    """Sends a folder to a place.

    Only files that this process knows to have been in the folder are ever deleted there.

    Args:
        folder: local.
        place: for this folder alone.
        resume: what is there is to be here, and all of the folder there. If not, only what changes from now on is sent: what
            lies in the folder may be older than what another machine has sent.
    """

    def __init__(self, folder: Path, place: Place, *, resume: bool = True) -> None:
        self.place = place
        self._folder = folder
        self._sign = f"{_SIGN}{uuid.uuid4().hex}"
        self._sent: dict[str, Stamp] = {} if resume else self._here()
        self._over: set[str] = set()
        """Files there that are to go once they are not here, or are not."""
        self._signed = False

    def claim(self, *, patience: float = 0.0, say: Callable[[str], None] = print) -> None:
        """Become the only one to write there.

        Args:
            patience: seconds to wait for another process to give no more signs of life.
            say: is told of the wait.

        Raises:
            FedveilError: another process writes there, or has until a moment ago.
        """
        deadline = time.monotonic() + patience
        waited = False
        with self.place.reached():
            while True:
                self.sign()
                signs = {name: at for name, at in self.place.times().items() if name.startswith(_SIGN)}
                now = signs.pop(self._sign)
                fresh = max((at for at in signs.values() if now - at < STALE), default=None)
                if fresh is None:
                    break
                if time.monotonic() > deadline:
                    self.place.delete(self._sign)
                    raise FedveilError(
                        f"another run or sweep named {self._folder.name!r} writes into {self.place.address} (last sign"
                        f" of life {now - fresh:.0f} s ago): wait for its end, or give this one another name"
                        f" (experiment: NAME); if it was killed, wait {STALE - (now - fresh):.0f} s"
                    )
                if not waited:
                    say(
                        f"waiting up to {STALE:.0f} s: another process has written into {self.place.address} a moment ago"
                    )
                waited = True
                time.sleep(min(1.0, STALE))
            for name in signs:
                self.place.delete(name)
        self._signed = True

    def release(self) -> None:
        """Leave the place to others."""
        self._signed = False
        self.place.delete(self._sign)

    def fetch(self, below: str = "") -> None:
        """Bring what is there and not here, or older here. A file keeps the time at which it was sent.

        What is there of a record that somebody has delivered meanwhile is left, to be deleted.

        Raises:
            FedveilError: the place does not answer.
        """
        before = self._sendings()
        with self.place.reached():
            times = self.place.times(below)
            for name, at in times.items():
                own = self._folder / name
                parts = name.split("/")
                if name.startswith(_SIGN) or not {"", ".", ".."}.isdisjoint(parts):
                    continue
                if _delivered(name, times):
                    self._over.add(name)
                elif before.get(name) != at and (not own.exists() or own.stat().st_mtime < at):
                    write_whole(own, [self.place.read(name)])
                    os.utime(own, (at, at))
                    self._sent[name] = _stamp(own)
                elif own.exists():  # this machine's own sending, or what has changed since
                    self._over.add(name)

    def reserve(self, below: str) -> None:
        """Make the folders that are there below one, so that nobody takes their names anew."""
        with self.place.reached():
            taken = {name.removeprefix(f"{below}/").partition("/")[0] for name in self.place.times(below)}
        for name in taken - {"", ".", ".."}:
            private_folder(self._folder / below / name)

    def send(self) -> None:
        """Send what has changed, and delete there what is here no longer. What cannot be sent holds up nothing else, unless
        the place takes long to refuse it.

        Raises:
            FedveilError: another process has taken the place for itself.
            OSError: the place does not take something; likewise `ArrowException` and `ValueError`.
        """
        self._check_mine()
        here = self._here()
        trouble: Exception | None = None
        changed = [name for name in here if self._sent.get(name) != here[name]]
        for last in (False, True):
            for name in sorted(name for name in changed if bool(_LAST.fullmatch(name)) is last):
                try:
                    content = (self._folder / name).read_bytes()
                except FileNotFoundError:  # gone meanwhile
                    continue
                except OSError as error:
                    trouble = trouble or error
                    continue
                began = time.monotonic()
                try:
                    self.place.write(name, content)
                    self._sent[name] = here[name]
                except TROUBLE as error:
                    if time.monotonic() - began > LONG:
                        raise
                    trouble = trouble or error
            if trouble is not None:
                raise trouble
        for name in sorted((self._sent.keys() | self._over) - here.keys(), key=_journals_first):
            self.place.delete(name)
            self._sent.pop(name, None)
            self._over.discard(name)
        there = self.place.times()
        sendings = {name: there[name] for name in self._sent if name in there}
        write_whole(self._folder / _SENDINGS, [json.dumps(sendings).encode()])

    def _check_mine(self) -> None:
        """Raise where another process has taken this one for dead, and its sign of life away."""
        signs = {name for name in self.place.times() if name.startswith(_SIGN)}
        if self._signed and signs and self._sign not in signs:
            raise FedveilError(f"another process has taken over {self.place.address} after a silence of this one")

    def sign(self) -> None:
        """Give a sign of life.

        Raises:
            FedveilError: another process has taken the place for itself.
            OSError: the place does not take it.
        """
        self._check_mine()
        self.place.write(self._sign, f"{os.uname().nodename}, process {os.getpid()}\n".encode())

    def _sendings(self) -> dict[str, float]:
        """When the place says that it took each file, of those that this folder had sent."""
        try:
            known = json.loads((self._folder / _SENDINGS).read_bytes())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

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


def _delivered(name: str, there: Collection[str]) -> bool:
    """Whether a file belongs to a record in the spool of which the journal is gone: the last that is sent, the first that
    is deleted."""
    found = _OF_A_RECORD.match(name)
    return found is not None and f"{found[0]}{JOURNAL}" not in there


def _journals_first(name: str) -> tuple[bool, str]:
    return not name.endswith(f"/{JOURNAL}"), name


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
        FedveilError: the place does not answer at the start, or another process writes there, or at the end the place lacks
            the latest.
    """
    if address is None:
        yield
        return
    mirror = Mirror(private_folder(folder), Place(address), resume=resume)
    mirror.claim(patience=STALE + every if resume else 0.0, say=say)
    try:
        mirror.fetch("" if resume else "spool")
        mirror.reserve("trials")
        with _sending(mirror, folder, say, every):
            yield
    finally:
        with suppress(*TROUBLE):  # it becomes stale
            mirror.release()


@contextmanager
def _sending(mirror: Mirror, folder: Path, say: Callable[[str], None], every: float) -> Iterator[None]:
    over = threading.Event()
    trouble: list[BaseException] = []
    taken = threading.Event()

    def sign() -> None:
        while not over.wait(every):
            with suppress(*TROUBLE, FedveilError):  # the next time of sending says it
                mirror.sign()

    def send() -> bool:
        if taken.is_set():
            return False
        try:
            mirror.send()
        except FedveilError as error:
            taken.set()
            say(f"note: {error}: nothing more is sent there")
            return False
        except TROUBLE as error:
            if not trouble:
                say(f"note: {mirror.place.address} does not take the runs, and is tried again: {said(error)}")
            trouble[:] = [error]
            return False
        if trouble:
            say(f"note: {mirror.place.address} takes the runs again")
        trouble.clear()
        return True

    def work() -> None:
        # At first soon: whoever is killed now finds what it is that can be resumed.
        pause = min(every, SOON)
        while not over.wait(pause):
            send()
            pause = every

    workers = [threading.Thread(target=one, daemon=True) for one in (work, sign)]
    for one in workers:
        one.start()
    try:
        yield
    finally:
        over.set()
        for one in workers:
            one.join()
        latest = time.monotonic() + AT_THE_END
        lacking = not send()
        if lacking:
            say(f"note: {mirror.place.address} lacks the latest: it is in {folder} alone")
    for pause in AGAIN if lacking else ():
        if time.monotonic() + pause > latest:
            break
        time.sleep(pause)
        if send():
            return
    if lacking:
        raise FedveilError(
            f"runs_dir: {mirror.place.address} lacks the latest of the results: they are in {folder} alone"
        )
