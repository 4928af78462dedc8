"""Files and folders for their owner alone: they may hold images of people."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from fedveil.fl.sealed import make_private


def private_folder(path: Path) -> Path:
    """Make a folder that its owner alone may enter, or take what others may from the one that is there; return it."""
    make_private(path)
    path.chmod(0o700)
    return path


def private_file(path: Path) -> Path:
    """Empty a file, or make it, so that its owner alone may read what is written into it next; return it."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
    path.chmod(0o600)
    return path


def private_tree(folder: Path) -> None:
    """Take what others may from all that is in a folder, whoever wrote it."""
    for place, folders, files in os.walk(folder):
        for names, mode in ((folders, 0o700), (files, 0o600)):
            for name in names:
                with suppress(FileNotFoundError):
                    os.chmod(os.path.join(place, name), mode)
