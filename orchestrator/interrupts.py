"""Ctrl-C and SIGTERM while an experiment runs: its runs are closed first; a second signal ends a command at once."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType, TracebackType
from typing import Any, ClassVar, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SERVER_TIMEOUT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1"}
"""Seconds for a server to answer once a signal came; what it does not take stays in the spool."""


class Interrupts:
    """The first signal raises `KeyboardInterrupt` wherever the main thread is; without a main thread nothing changes.

    Which signal it was is kept beside the exception: Ray replaces what a handler raises by a `KeyboardInterrupt` of its own.
    Outside a command SIGTERM comes out of the block as `SystemExit`.

    Args:
        command: the process is there for the block alone. A second signal ends it at once.

    Attributes:
        number: the signal that came; None as long as there was none.
        resumable: what it stopped can be resumed.
    """

    current: ClassVar[Interrupts | None] = None

    def __init__(self, *, command: bool) -> None:
        self.number: int | None = None
        self.resumable = False
        self._command = command
        self._holding = 0
        self._held = False
        self._before: dict[signal.Signals, Any] = {}
        self._timeout: dict[str, str | None] = {}

    @property
    def code(self) -> int:
        """What a process that the signal stopped exits with."""
        return 128 + (self.number or signal.SIGINT)

    def install(self) -> None:
        """Take the signals; call it again after `ray.init`, which takes SIGTERM for itself."""
        if threading.current_thread() is threading.main_thread():
            for one in SIGNALS:
                signal.signal(one, self._stop)

    def __enter__(self) -> Self:
        self._before = {one: signal.getsignal(one) for one in SIGNALS}
        self.install()
        Interrupts.current = self
        if self._command:
            atexit.register(self._leave)  # before Ray's and others' own, hence called after them
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        Interrupts.current = None
        if threading.current_thread() is threading.main_thread():
            for one, handler in self._before.items():
                signal.signal(one, signal.SIG_DFL if handler is None else handler)
        for name, value in self._timeout.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if isinstance(error, KeyboardInterrupt) and self.number == signal.SIGTERM and not self._command:
            raise SystemExit(self.code) from None

    def _leave(self) -> None:
        """Spare a stopped command the seconds in which Python takes PyTorch apart."""
        if self.number is not None:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self.code)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None and self._command:
            os._exit(128 + number)
        self.number = number
        for name, value in _SERVER_TIMEOUT.items():
            self._timeout.setdefault(name, os.environ.get(name))
            os.environ[name] = value
        self._held = True
        self.release()

    def hold(self) -> None:
        """Let signals wait for `release`."""
        self._holding += 1

    def release(self, held: int = 0) -> None:
        """End ``held`` calls of `hold`; once all are, raise what waited.

        Raises:
            KeyboardInterrupt: a signal waited.
        """
        self._holding -= held
        if self._held and not self._holding:
            self._held = False
            raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[Interrupts]:
    """Handle signals until the block ends, as the command does already where this is part of one."""
    known = Interrupts.current
    with Interrupts(command=False) if known is None else nullcontext(known) as interrupts:
        yield interrupts


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let a signal wait until the block ends: stopped amid a transaction, a database would stay locked for this process."""
    current = Interrupts.current
    if current is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    current.hold()
    try:
        yield
    finally:
        current.release(1)


def can_be_resumed() -> None:
    """Note that what runs now can be resumed from here on."""
    if Interrupts.current is not None:
        Interrupts.current.resumable = True
