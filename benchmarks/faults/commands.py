"""A ``fedveil`` that runs, what it has said so far, and the processes that Ray started for it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.cores import MARK, SLOT, processes

ROOT = Path(__file__).parents[2]
LONGEST = 300.0
"""Seconds after which something is taken for stuck."""
TRIAL = re.compile("ray::ImplicitFunc")
"""The title of a sweep's trial process."""
_LINE = re.compile(r"^ *\d+ s  (\S+)  (.*)")
_PHASES = {
    "preparing the defence": "the defence is prepared",
    "the attacker prepares": "the attacker prepares",
    "audit of": "an audit",
    "round ": "a round",
    "done": "after a trial",
}


class StuckError(Exception):
    """Something did not happen in time."""


class Command:
    """A ``fedveil`` in a process of its own, which Ctrl-C reaches whatever this one was started with.

    Args:
        words: of its command line.
        folder: in which it runs.
        mark: in the environment of it and of all that it starts.
        environment: beside this process's.
        before: a command line that runs it, for example in a name space of its own.
    """

    def __init__(
        self,
        words: Sequence[str],
        folder: Path,
        mark: str,
        environment: Mapping[str, str],
        before: Sequence[str] = (),
    ) -> None:
        self.mark = mark
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._over = False
        self.process = subprocess.Popen(
            [*before, sys.executable, "-m", "fedveil.orchestrator", *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), MARK: mark, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip())
                self._news.notify_all()
        with self._news:
            self._over = True
            self._news.notify_all()

    @property
    def said(self) -> str:
        """All of it."""
        return "\n".join(self.lines)

    @property
    def phase(self) -> str:
        """What it did when it last said something."""
        for line in reversed(self.lines):
            told = _LINE.match(line)
            for words, phase in _PHASES.items():
                if told and told[2].startswith(words):
                    return phase
        return "the start"

    def until(self, words: str) -> None:
        """Wait until a line has these words.

        Raises:
            StuckError: none has, or it ended before.
        """

        def there() -> bool:
            return self._over or any(words in line for line in self.lines)

        with self._news:
            if not self._news.wait_for(there, LONGEST) or not any(words in line for line in self.lines):
                raise StuckError(f"did not say {words!r}:\n{self.said[-3000:]}")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs still."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Return its exit code.

        Raises:
            StuckError: it does not end.
        """
        try:
            code = self.process.wait(LONGEST)
        except subprocess.TimeoutExpired:
            raise StuckError(f"does not end:\n{self.said[-3000:]}") from None
        self._reader.join(5)
        return code

    def workers(self, title: re.Pattern[str] = SLOT) -> list[int]:
        """Return the process numbers of its worker slots, or of others that Ray has given a title."""
        return [pid for pid, (name, _) in processes(self.mark).items() if title.match(name)]

    def any_worker(self, title: re.Pattern[str] = SLOT) -> int:
        """Wait for one, and return its process number.

        Raises:
            StuckError: there is none in time, or the command has ended.
        """
        deadline = time.monotonic() + LONGEST
        while not (found := self.workers(title)):
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise StuckError(f"has no {title.pattern}:\n{self.said[-3000:]}")
            time.sleep(0.02)
        return max(found)


def end(mark: str) -> None:
    """End all processes with this mark: what a killed command has left."""
    while left := processes(mark):
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1)
