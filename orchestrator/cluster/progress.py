"""What trials say while they run, brought from wherever they run to the screen of whoever started them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from rich.console import Console
from rich.markup import escape

Say = Callable[[str], None]
"""Is told a line."""
_LAST_CALL = 1.0
"""Seconds for actors to end in, once they are not wanted any more."""


def plainly(console: Console) -> Say:
    """Return what prints lines on a console as they are: what looks like markup in them, a folder's name say, is text."""
    return lambda line: console.print(escape(line), soft_wrap=True)


class _Board:
    """A mailbox in the cluster, and a list of who is at work; an actor's methods run one at a time."""

    def __init__(self) -> None:
        self._lines: list[tuple[str, str]] = []
        self._at_work: list[Any] = []
        self._over = False

    def enlist(self, actor: Any) -> bool:
        if not self._over:
            self._at_work.append(actor)
        return not self._over

    def dismiss(self) -> list[Any]:
        self._over = True
        return self._at_work

    def post(self, who: str, text: str) -> None:
        self._lines.append((who, text))

    def take(self) -> list[tuple[str, str]]:
        lines, self._lines = self._lines, []
        return lines


class Speaker:
    """Says what one trial does. Losing a line never hurts the trial.

    Args:
        board: the mailbox of `progress_on`, or None to keep quiet.
        who: the trial's name.
    """

    def __init__(self, board: Any, who: str) -> None:
        self._board = board
        self._who = who

    def __call__(self, text: str) -> None:
        """Post a line."""
        if self._board is not None:
            self._board.post.remote(self._who, text)


def enlist(board: Any) -> None:
    """Tell the board of `at_work` that this actor is at work.

    Raises:
        SystemExit: that is over.
    """
    if board is not None and not ray.get(board.enlist.remote(ray.get_runtime_context().current_actor)):
        raise SystemExit


@contextmanager
def at_work(board: Any) -> Iterator[None]:
    """If the block is interrupted, kill the actors that enlisted in ``board``, so that they write nothing any more."""
    try:
        yield
    except KeyboardInterrupt:
        with suppress(ray.exceptions.RayError):
            actors = ray.get(board.dismiss.remote(), timeout=_LAST_CALL)
            for actor in actors:
                ray.kill(actor)
            ends = [actor.__ray_ready__.remote() for actor in actors]
            ray.wait(ends, num_returns=len(ends), timeout=_LAST_CALL) if ends else None
        raise


class _Lines(logging.Handler):
    def __init__(self, say: Say) -> None:
        super().__init__(logging.INFO)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.getMessage())


@contextmanager
def log_to(say: Say | None) -> Iterator[None]:
    """Hand what is logged inside, about how far long work is and upwards, to ``say``; None changes nothing."""
    if say is None:
        yield
        return
    log, handler = logging.getLogger("fedveil"), _Lines(say)
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(before)
        log.removeHandler(handler)


@contextmanager
def progress_on(console: Console, *, every: float = 0.5) -> Iterator[Any]:
    """Print what trials post on the yielded board, with the seconds since the start, until the block ends."""
    board: Any = ray.remote(num_cpus=0)(_Board).remote()
    began = time.monotonic()
    over = threading.Event()

    def show() -> None:
        for who, text in ray.get(board.take.remote(), timeout=30):
            seconds = f"[dim]{time.monotonic() - began:6.0f} s[/dim]"
            console.print(f"{seconds}  [bold]{escape(who)}[/bold]  {escape(text)}", soft_wrap=True)

    def watch() -> None:
        while not over.wait(every):
            try:
                show()
            except ray.exceptions.GetTimeoutError:
                continue  # a busy machine; the next look may succeed
            except ray.exceptions.RayError:
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield board
    finally:
        over.set()
        watcher.join(timeout=35)
        # What ended the block matters more than its last lines.
        with suppress(ray.exceptions.RayError):
            show()
        ray.kill(board)
