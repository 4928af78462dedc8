"""Downloads with a checksum, whole or not at all, and one clear error where there is no network."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

from fedveil.fl.data.search import VARIABLE, find_all, searched
from fedveil.fl.errors import FedveilError


def file_md5(path: Path) -> str:
    """Return the md5 of a file in hexadecimal; a check against damage, not against malice."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def official(name: str, md5: str) -> Path | None:
    """Return the first file called ``name`` in the search folders that has this md5, or None."""
    return next((path for path in find_all(name) if path.is_file() and file_md5(path) == md5), None)


def retrieve(url: str, folder: Path, filename: str, md5: str) -> None:
    """Download ``url`` to ``folder/filename`` with torchvision's downloader.

    Raises:
        OSError: no network, no such address, or the disk is full.
        RuntimeError: what came does not have that md5.
    """
    # Imported here: torchvision takes seconds to import, and most runs download nothing.
    from torchvision.datasets.utils import download_url

    download_url(url, str(folder), filename=filename, md5=md5)


def download(urls: Sequence[str], target: Path, *, md5: str, what: str) -> Path:
    """Make sure that ``target`` is the official file, from the first of ``urls`` that works.

    Other folders are not looked into: see `official`.

    Args:
        urls: mirrors, best first.
        target: the file to write; left as it is if its md5 is right already.
        md5: of the official file, in hexadecimal.
        what: the data set, for messages.

    Returns:
        ``target``.

    Raises:
        FedveilError: no mirror gave the file; says what was looked for, where, and how to bring it by hand.
    """
    if target.is_file() and file_md5(target) == md5:
        return target
    reasons = []
    for url in urls:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # Moved into place when it is whole, so that a run beside this one never reads half a file.
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as scratch:
                retrieve(url, Path(scratch), target.name, md5)
                os.replace(Path(scratch) / target.name, target)
            return target
        except (OSError, RuntimeError, HTTPException) as error:
            reasons.append(f"{url}: {' '.join(str(error).split())}")
    raise FedveilError(
        f"{what}: {target.name} was looked for in {searched()} and could not be downloaded"
        f" ({'; '.join(reasons)}); bring the file by hand to {target.parent},"
        f" or, in the same layout, to a folder that {VARIABLE} names"
    )
