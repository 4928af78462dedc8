"""What nobody foresaw in a trial, a plug-in's error above all: a sentence for the screen, the traceback for a file."""

from __future__ import annotations

import errno
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedveil.fl.errors import FedveilError, TrialError
from fedveil.orchestrator.cluster.executor import LOST
from fedveil.orchestrator.run.private import private_file, private_folder
from fedveil.orchestrator.tracking import without_passwords
from fedveil.orchestrator.tracking.names import cut

LOG = "error.log"
"""In the trial's folder, for its owner alone: a traceback's texts may tell of images."""
DIED = "the trial's process died: it was killed, or the machine ran out of memory"
_LONGEST = 300
_REPEATED = ("Trial task failed for trial", "Trials did not complete")
"""How Tune begins what it logs of a failed trial: its traceback, which is in `LOG`, and its number in Tune."""


@contextmanager
def logged(folder: Path) -> Iterator[None]:
    """Keep the traceback of an unforeseen error in the trial's ``folder``, where no older one is left.

    Raises:
        TrialError: instead of that error.
    """
    log = folder / LOG
    try:
        log.unlink(missing_ok=True)
        yield
    except FedveilError:
        raise
    except Exception as error:
        raise TrialError(
            f"{_said_of(error, folder)} ({_kept(log, ''.join(traceback.format_exception(error)))})"
        ) from error


def sentence_of(error: BaseException, folder: Path) -> str:
    """Return a failed trial's sentence; the traceback of one that never came to write it is kept in ``folder``.

    Args:
        error: as Ray hands it on.
        folder: the trial's.
    """
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, FedveilError):
        return " ".join(str(cause).split())
    text = str(error).strip() or repr(error)
    if isinstance(cause, LOST):
        account = _kept(folder / LOG, text, what="Ray's account")
        return f"{DIED} ({account})"
    return f"{_cut(text.splitlines()[-1])} ({_kept(folder / LOG, text)})"


@contextmanager
def without_repeats() -> Iterator[None]:
    """Leave out of Tune's log what `logged` has kept."""
    logs = [logging.getLogger(f"ray.tune.{name}") for name in ("execution.tune_controller", "tune")]
    for log in logs:
        log.addFilter(_is_news)
    try:
        yield
    finally:
        for log in logs:
            log.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_REPEATED)


def _said_of(error: Exception, folder: Path) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space is left for files ({folder} and temporary ones): free some, and go on with --resume"
    return _line(error)


def _line(error: Exception) -> str:
    return _cut(f"{type(error).__name__}: {error}")


def _cut(text: str) -> str:
    return cut(without_passwords(" ".join(text.split())), _LONGEST)


def _kept(log: Path, trace: str, *, what: str = "traceback") -> str:
    """Write the traceback, or ``what`` else it is, and say where it is."""
    try:
        private_folder(log.parent)
        private_file(log).write_text(without_passwords(trace).rstrip() + "\n", "utf-8", "replace")
    except OSError as error:
        return f"the {what} cannot be written to {log}: {error.strerror or error}"
    return f"{what}: {log}"
