"""Opening files of unknown make: nothing hangs, nothing runs a program, and what is too large is refused by its head."""

from __future__ import annotations

import os
import stat
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from fedveil.fl.errors import FedveilError
from fedveil.fl.memory import check_room

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What Pillow may take a file for. It looks at the content and not at the name, and knows formats that run programs: an
EPS goes to Ghostscript."""

_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
"""How a member may be packed; of the other methods `zipfile` inflates a whole block at once, however long that becomes."""


FileState = tuple[Path, int, int]


def state_of(path: Path) -> FileState:
    """Return what changes when a file does; of a link that leads nowhere, when the link does."""
    try:
        state = path.stat()
    except OSError:
        state = path.lstat()
    return path.absolute(), state.st_mtime_ns, state.st_size


def open_plain(path: Path) -> BinaryIO:
    """Open a plain file for reading; a pipe or a device might be waited for without end.

    Raises:
        FedveilError: it is something else, it is missing or it may not be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        if stat.S_ISREG(os.fstat(handle).st_mode):
            return os.fdopen(handle, "rb")
        os.close(handle)
        reason = "it is a folder, a pipe or a device"
    except OSError as error:
        reason = error.strerror or str(error)
    raise FedveilError(f"{path}: cannot be read ({reason}); allowed: plain files")


def read_plain(path: Path) -> bytes:
    """Return what a plain file holds.

    Raises:
        FedveilError: see `open_plain`; or it is larger than the memory.
    """
    with open_plain(path) as file:
        check_room(os.fstat(file.fileno()).st_size, str(path))
        return file.read()


@contextmanager
def quiet_pictures() -> Iterator[None]:
    """Leave out Pillow's warnings of damaged metadata, and of sizes that `open_picture` refuses, in all threads.

    It is for the thread that starts the others: each that changed the filters by itself would put back another's.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """Open an image file of one of `FORMATS`; its pixels are not read yet. `quiet_pictures` keeps Pillow from warning.

    Raises:
        FedveilError: see `open_plain`; or it is damaged or of another format, there or in the block; or it has more pixels
            than Pillow holds for safe.
    """
    with open_plain(path) as file:
        try:
            with Image.open(file, formats=FORMATS) as image:
                _check_pixels(path, image)
                yield image
        except FedveilError:
            raise
        except UnidentifiedImageError as error:
            raise FedveilError(
                f"{path}: this image cannot be read ({_unknown(file)}); allowed: {', '.join(FORMATS)}"
            ) from error
        except Exception as error:  # Pillow's readers each raise their own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise FedveilError(
                f"{path}: this image cannot be read, or it is damaged ({reason}); allowed: {', '.join(FORMATS)}"
            ) from error


def _unknown(file: BinaryIO) -> str:
    """Say what a file is in which Pillow finds no image; its own words name the object that it read, and no file."""
    file.seek(0)
    head = file.read(132)
    if not head:
        return "it is empty"
    if head[128:] == b"DICM":
        return "it is a DICOM file: save its pixels as PNG or TIFF, of 16 bits if you like"
    return "its content is that of no image, or of another format"


def _check_pixels(path: Path, image: Image.Image) -> None:
    pixels, most = image.width * image.height, Image.MAX_IMAGE_PIXELS
    if most is not None and pixels > most:
        raise FedveilError(
            f"{path}: an image of {image.width}x{image.height} = {pixels} pixels; allowed: at most {most}"
        )


def check_members(path: Path, members: Sequence[zipfile.ZipInfo], what: str, *, copies: int = 1) -> None:
    """Refuse members of an archive that would not go into the memory, by the sizes that it claims: none reads further.

    Args:
        path: the archive, for messages.
        members: those that are to be read.
        what: they are, for messages.
        copies: of each that are in the memory at once.

    Raises:
        FedveilError: they are too large, or packed by a method that may become so.
    """
    for member in members:
        if member.compress_type not in _METHODS:
            raise FedveilError(
                f"{path}: {member.filename} is packed by method {member.compress_type}; allowed: stored or deflated, as"
                " np.savez and np.savez_compressed write"
            )
    check_room(copies * sum(member.file_size for member in members), f"{path}: reading {what}")
