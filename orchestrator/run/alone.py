"""One process at a time where two would write into the same files and MLflow runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    refusal = (
        f"a sweep named {paths.root.name!r} runs in this folder already and writes into {paths.root}: wait for its end,"
        " or give this one another name (experiment: NAME)"
    )
    with _held(private_folder(paths.root) / ".sweep.lock", refusal):
        yield


@contextmanager
def only_run(checkpoints: Path) -> Iterator[None]:
    """Be the only process that goes on with the run of these checkpoints until the block, or the process, ends.

    Raises:
        FedveilError: another one does.
    """
    refusal = (
        f"--resume: the run with the checkpoints in {checkpoints} was not interrupted, it runs: wait for its end, or start"
        " another without --resume"
    )
    with _held(private_folder(checkpoints) / ".lock", refusal):
        yield


def goes_on_nowhere(checkpoints: Path) -> bool:
    """Whether no process is at the run of these checkpoints."""
    try:
        with only_run(checkpoints):
            return True
    except FedveilError:
        return False


@contextmanager
def _held(file: Path, refusal: str) -> Iterator[None]:
    lock = FileLock(file, timeout=0, mode=0o600)
    try:
        lock.acquire()
    except Timeout:
        raise FedveilError(refusal) from None
    try:
        yield
    finally:
        lock.release()
