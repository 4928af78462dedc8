"""One sweep at a time under one name in one folder: a second would write into the first one's files and runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from fedveil.fl.errors import FedveilError
from fedveil.orchestrator.run.paths import ExperimentPaths
from fedveil.orchestrator.run.private import private_folder


@contextmanager
def only_sweep(paths: ExperimentPaths) -> Iterator[None]:
    """Be the only sweep that writes into ``paths`` until the block, or the process, ends.

    Raises:
        FedveilError: another one does.
    """
    lock = FileLock(private_folder(paths.root) / ".sweep.lock", timeout=0, mode=0o600)
    try:
        lock.acquire()
    except Timeout:
        raise FedveilError(
            f"a sweep named {paths.root.name!r} runs in this folder already and writes into {paths.root}: wait for its end,"
            " or give this one another name (experiment: NAME)"
        ) from None
    try:
        yield
    finally:
        lock.release()
