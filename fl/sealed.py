"""Files that are there whole or not at all, and that are known for damaged: a checksum stands before what they hold."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

Content = bytes | memoryview

_CHECK = 16
"""Bytes of the checksum."""


def checksum(content: Content, name: str) -> bytes:
    """Return the checksum of what is called ``name``."""
    return hashlib.blake2b(content, digest_size=_CHECK, key=name.encode()).digest()


def make_private(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for its owner alone; what is there stays as it is."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(exist_ok=True, mode=0o700)


def write_whole(path: Path, parts: Iterable[Content]) -> None:
    """Write the parts into ``path``, for its owner alone; whoever reads meanwhile finds the file of before, or none.

    Raises:
        OSError: the disk does not take it. The file of before is still there.
    """
    make_private(path.parent)  # what is learnt on images may show them
    # Processes side by side may write the same file: each writes its own and the last rename wins.
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with open(handle, "wb") as file:
            for part in parts:
                file.write(part)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_sealed(path: Path, content: Content, name: str) -> None:
    """Write ``content`` with its checksum, as `write_whole` does.

    Args:
        path: the file.
        content: of any kind.
        name: what it is; only who reads it by the same name finds it whole. At most 64 bytes.
    """
    write_whole(path, (checksum(content, name), content))


def read_sealed(path: Path, name: str) -> memoryview | None:
    """Return the content; None where there is none, or a file that `write_sealed` did not write by ``name``, or not so."""
    try:
        whole = memoryview(path.read_bytes())
    except OSError:
        return None
    content = whole[_CHECK:]
    return content if checksum(content, name) == whole[:_CHECK] else None
