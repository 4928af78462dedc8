"""A folder at an address: an object store's, a shared one, or what else pyarrow knows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pyarrow import ArrowException
from pyarrow.fs import AwsStandardS3RetryStrategy, FileSelector, FileSystem, FileType, S3FileSystem

from fedveil.fl.errors import FedveilError
from fedveil.orchestrator.tracking import without_passwords

ANSWER = 10.0
"""Seconds without a byte after which an object store is taken for mute; it is asked twice. pyarrow waits for 100 s."""
TROUBLE = (OSError, ArrowException, ValueError)
"""What a place, a file that goes, or a name that the place does not take may raise."""


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
        self._system: Any = _impatient(system)
        self._base = base.rstrip("/")

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Turn what goes wrong at the place into a sentence."""
        try:
            yield
        except TROUBLE as error:
            raise FedveilError(f"runs_dir: {self.address}: {said(error)}") from error

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

    def write(self, name: str, content: bytes) -> None:
        """Write the file of that name, all of it: the content is there before it begins."""
        with self._system.open_output_stream(f"{self._base}/{name}") as stream:
            stream.write(content)

    def delete(self, name: str) -> None:
        """Delete a file that may be gone already."""
        with suppress(FileNotFoundError):
            self._system.delete_file(f"{self._base}/{name}")


def _impatient(system: Any) -> Any:
    """Return the same file system with less patience, where it is one that lets itself be told."""
    if not isinstance(system, S3FileSystem):
        return system
    _, (settings,) = system.__reduce__()  # what pyarrow pickles
    attempts = AwsStandardS3RetryStrategy(max_attempts=2)
    limits = {"connect_timeout": ANSWER, "request_timeout": ANSWER, "retry_strategy": attempts}
    return S3FileSystem(**{**settings, **limits})


def said(error: BaseException) -> str:
    """Return an error in one line, without the secrets of an address."""
    return " ".join(without_passwords(str(error)).split())
