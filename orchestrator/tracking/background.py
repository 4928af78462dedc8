"""Delivery beside what is recorded: no training, and no start or end of it, waits for MLflow for long."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedveil.orchestrator.tracking.delivery import Replayed, replay
from fedveil.orchestrator.tracking.names import ABANDONED, ERROR_TAG
from fedveil.orchestrator.tracking.operations import Close, RunStatus, Tags
from fedveil.orchestrator.tracking.spool import Spool

_log = logging.getLogger(__name__)

EVERY = 5.0
"""Seconds between two deliveries, so that MLflow shows trials while they run."""
_SELDOM = 12
"""So many times longer is the pause at most, while nothing is taken."""
PATIENCE = 60.0
"""Seconds without any progress after which the end is not held up any more: the spool keeps what is left."""
INTERRUPTED = 5.0
"""The same after Ctrl-C."""


@contextmanager
def delivering(
    spool: Path, say: Callable[[str], None], *, every: float = EVERY, patience: float = PATIENCE
) -> Iterator[None]:
    """Deliver all that lies in a spool until the block ends, and what is left then; close runs that died before, as killed.

    It is a thread's work: a server that accepts and never answers, and MLflow's own patience with a database that is away
    (ten attempts, 100 s), hold up nobody.

    Args:
        spool: the spool folder of an experiment.
        say: is told how many runs MLflow did not take.
        every: seconds between two deliveries.
        patience: see `PATIENCE`.
    """
    _bury(spool)
    over = threading.Event()
    left: list[Replayed] = []

    def work() -> None:
        pause = every
        while not left:
            last = over.is_set()  # what was written before it was set is in what follows
            done = replay(spool)
            if last:
                left.append(done)
                return
            pause = min(2 * pause, _SELDOM * every) if done.waiting and not done.runs else every
            over.wait(pause)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        yield
    except KeyboardInterrupt:
        patience = min(patience, INTERRUPTED)
        raise
    finally:
        over.set()
        before = None
        while worker.is_alive() and before != (before := _marks(spool)):
            worker.join(patience)
        waiting = left[0].waiting if left else len(_marks(spool))
        if waiting:
            say(
                f"MLflow did not take the records of {waiting} run(s): they wait in {spool} for the next run or sweep of"
                f" {spool.parent.name}, or this one's --resume"
            )


def _bury(spool: Path) -> None:
    """Close the runs of processes that are dead: nobody else will, unless they are resumed."""
    end = int(time.time() * 1000)
    try:
        Spool(spool).bury([Tags({ERROR_TAG: ABANDONED}), Close(RunStatus.KILLED, end)])
    except OSError as error:
        _log.error("the spool %s cannot be written: %s", spool, error)


def _marks(spool: Path) -> dict[str, int]:
    """Return how far each journal is delivered."""
    try:
        return {journal.token: journal.acked for journal in Spool(spool).journals()}
    except OSError:
        return {}
