"""What trials say while they run, brought from wherever they run to the screen of whoever started them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from statistics import fmean
from typing import Any

import ray
from rich.console import Console
from rich.text import Text

from fedveil.fl.progress import EVERY, duration

Say = Callable[[str], None]
"""Is told a line."""
NOTE = "note: "
"""Begins what trials say of how their numbers are to be read: mostly the same of all trials of a sweep."""
_PATIENCE = 30.0
"""Seconds after which it is said again that processes start: on a busy machine that takes a minute."""
_LAST_CALL = 1.0
"""Seconds for actors to end in, once they are not wanted any more."""


def plainly(console: Console) -> Say:
    """Return what prints lines on a console as they are: what looks like markup in them, a folder's name say, is text."""
    return lambda line: _show(console, Text(line))


def _show(console: Console, line: Text, indent: int = 0) -> None:
    """Print a line. A window has it broken between words, the rest indented; words stay whole, since paths are copied."""
    if console.is_terminal and console.width > 2 * indent:
        head, begin = console.width, 0
        while len(line) - begin > head and (end := _break(line.plain, begin + indent * (begin == 0), begin + head)):
            console.print(line[begin:end], soft_wrap=True, end="\n" + " " * indent)
            begin, head = end + 1, console.width - indent
        line = line[begin:]
    console.print(line, soft_wrap=True)


def _break(text: str, begin: int, last: int) -> int:
    """Return where the last space up to ``last`` is, or else the next one; 0 where there is none after ``begin``."""
    before = text.rfind(" ", begin, last + 1)
    return before if before > begin else max(0, text.find(" ", last))


class _Board:
    """A mailbox in the cluster, and a list of who is at work; an actor's methods run one at a time.

    Args:
        name: of the experiment.
        trials: how many there will be; 0 where that is not known.
        at_once: how many of them run side by side.
        clock: seconds.
    """

    def __init__(
        self, name: str = "", trials: int = 0, at_once: int = 1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._lines: list[tuple[str, str]] = []
        self._noted: dict[str, str] = {}
        self._at_work: list[Any] = []
        self._over = False
        self._trials = trials
        self._at_once = at_once
        self._clock = clock
        self._began: dict[str, float] = {}
        self._took: list[float] = []

    def __repr__(self) -> str:
        """What Ray's dashboard shows."""
        return f"{self._name}: messages"

    def enlist(self, actor: Any) -> bool:
        if not self._over:
            self._at_work.append(actor)
        return not self._over

    def dismiss(self) -> list[Any]:
        self._over = True
        return self._at_work

    def post(self, who: str, text: str) -> None:
        """Keep a line; not a note that another trial's is."""
        if not text.startswith(NOTE) or self._noted.setdefault(text, who) == who:
            self._lines.append((who, text))

    def begin(self, who: str) -> None:
        """A trial begins."""
        self._began[who] = self._clock()

    def end(self, who: str) -> None:
        """A trial is over. Where others are not, say how long that will take if they are like those before."""
        self._took.append(self._clock() - self._began.pop(who))
        over = len(self._took)
        if over < self._trials:
            left = self._left()
            rest = f"about {duration(left)} left" if left >= 1 else "the last take longer than those before"
            self._lines.append(("sweep", f"{over} of {self._trials} trials are over, {rest}"))

    def _left(self) -> float:
        """Return the seconds until the last trial ends, if each takes what those before took and begins where one ends."""
        usual = fmean(self._took)
        # One that takes longer than usual may take longer still: nobody knows.
        running = [max(0.0, usual - (self._clock() - began)) for began in self._began.values()]
        ends = sorted([*running, *[0.0] * (self._at_once - len(running))])
        for _ in range(self._trials - len(self._took) - len(running)):
            ends = sorted([ends[0] + usual, *ends[1:]])
        return ends[-1]

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


@contextmanager
def under_way(board: Any, who: str) -> Iterator[None]:
    """Tell the board when a trial begins, and when it is over."""
    if board is not None:
        board.begin.remote(who)
    try:
        yield
    finally:
        if board is not None:
            board.end.remote(who)


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
def progress_on(console: Console, *, name: str, trials: int = 0, at_once: int = 1, every: float = 0.5) -> Iterator[Any]:
    """Print what trials post on the yielded board, with the seconds since the start, until the block ends.

    Args:
        console: where to.
        name: of the experiment; Ray's dashboard shows it.
        trials: how many will end; 0 where that is not known.
        at_once: how many of them run side by side.
        every: seconds between two looks.
    """
    board: Any = ray.remote(num_cpus=0)(_Board).remote(name, trials, at_once)
    began = time.monotonic()
    over = threading.Event()

    def line(who: str, text: str) -> None:
        seconds = f"{time.monotonic() - began:6.0f} s  "
        _show(console, Text.assemble((seconds, "dim"), (who, "bold"), f"  {text}"), len(seconds))

    def show() -> bool:
        lines = ray.get(board.take.remote(), timeout=30)
        for who, text in lines:
            line(who, text)
        return bool(lines)

    def watch() -> None:
        patience: float | None = EVERY  # until the first line comes
        while not over.wait(every):
            if patience is not None and time.monotonic() - began > patience:
                line(name, "processes start, and each loads PyTorch")
                patience += _PATIENCE
            try:
                patience = None if show() else patience
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
