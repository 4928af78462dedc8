"""Image files as arrays of one size: read by several threads, and large folders only once."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fedveil.fl.cache import State, cached
from fedveil.fl.data.conversion import ValueRange, value_range
from fedveil.fl.data.files import FileState, open_picture, quiet_pictures
from fedveil.fl.data.fitting import Fit, fit_note, fitted
from fedveil.fl.data.search import cache_folder
from fedveil.fl.errors import FedveilError
from fedveil.fl.memory import check_room

Answer = TypeVar("Answer")

GREY = frozenset({"1", "L", "LA"})
ALPHA = frozenset({"LA", "RGBA"})
COLOUR = frozenset({"P", "RGB", "RGBA", "CMYK", "YCbCr"})
DEEP = frozenset({"I", "I;16", "I;16B", "I;16L", "F"})
"""Pillow's modes of grey pictures of more than 8 bits, which it would clip to a byte without a word."""
KEPT = 2**26
"""Bytes of files from which on what was made of them is kept on disk for the next process: that takes seconds to make."""
_THREADS = 8
_NAMED = 5
"""Pictures that are named where many can't be read."""
_FINER = 2
"""A JPEG is decoded at no less than so many times the size that is wanted, where it is that large."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """What image files hold.

    Attributes:
        pixels: (n, size, size) uint8 if all are grey, else (n, size, size, 3).
        notes: what was done to them, a sentence each.
    """

    pixels: NDArray[np.uint8]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Look:
    """What a picture is before its pixels are looked at."""

    mode: str
    width: int
    height: int


@lru_cache(maxsize=1)  # another seed splits the same images otherwise
def read_pictures(files: tuple[FileState, ...], size: int, fit: Fit, name: str) -> Pictures:
    """Read image files; of large ones what was made is kept in ``data/cache``, for the owner alone.

    Grey pictures of 16 bits or of floats share one range of values, see `value_range`; they do not mix with others.

    Args:
        files: in order.
        size: pixels a side.
        fit: how pictures become squares.
        name: the data set, for messages.

    Raises:
        FedveilError: a file is none of an image, or damaged; they do not fit the memory, or some are deeper than 8 bits
            and others are not.
    """
    folder = cache_folder() if sum(length for _, _, length in files) >= KEPT else None
    state = cached(folder, ("squares", files, size, fit), lambda: _read_all(files, size, fit, name))
    notes = []
    least, most = state["sides"].tolist()
    if not least == most == size:
        sides = f"{least} px" if least == most else f"{least} to {most} px"
        notes.append(f"{name}: pictures of {sides} a side were scaled to {size}x{size} (data.size)")
    if alpha := int(state["alpha"]):
        notes.append(f"{name}: {alpha} of {len(files)} pictures have an alpha channel, which was left out")
    if odd := int(state["odd"]):
        notes.append(fit_note(name, odd, len(files), fit))
    if state["range"].numel():
        low, high = state["range"].tolist()
        notes.append(f"{name}: pixels were of more than 8 bits; {low:g} became 0 and {high:g} became 255")
    return Pictures(state["pixels"].numpy(), tuple(notes))


def _read_all(files: tuple[FileState, ...], size: int, fit: Fit, name: str) -> State:
    paths = [path for path, *_ in files]
    with quiet_pictures(), ThreadPoolExecutor(max_workers=min(_THREADS, _cores())) as threads:

        def each(work: Callable[[Path], Answer]) -> Iterable[Answer]:
            return _all_read(name, threads.map(partial(_tried, work), paths))

        looks = list(each(_look))
        deep = _deep(paths, looks)
        grey = deep or all(look.mode in GREY for look in looks)
        shape = (len(files), size, size) if grey else (len(files), size, size, 3)
        # Here, in the splits, and in the tensors that are made of these.
        check_room(3 * math.prod(shape), f"{name}: reading {len(files)} images of {size}x{size} px")
        used = _common_range(list(each(_extremes)), name) if deep else None
        pixels = np.empty(shape, np.uint8)
        for row, made in enumerate(each(lambda path: _read(path, size, fit, grey, used))):
            pixels[row] = made
    ends = [] if used is None else [used.low, used.high]
    sides = [(min if fit == "crop" else max)(look.width, look.height) for look in looks]
    return {
        "pixels": torch.from_numpy(pixels),
        "odd": torch.tensor(sum(look.width != look.height for look in looks)),
        "sides": torch.tensor([min(sides), max(sides)]),
        "alpha": torch.tensor(sum(look.mode in ALPHA for look in looks)),
        "range": torch.tensor(ends, dtype=torch.float64),
    }


def _tried(work: Callable[[Path], Answer], path: Path) -> Answer | FedveilError:
    try:
        return work(path)
    except FedveilError as error:
        return error


def _all_read(name: str, answers: Iterable[Answer | FedveilError]) -> Iterator[Answer]:
    """Yield answers, as far as all are some: of files that can't be read one wants to know all at once."""
    errors = []
    for answer in answers:
        if isinstance(answer, FedveilError):
            errors.append(answer)
        elif not errors:
            yield answer
    if len(errors) == 1:
        raise errors[0]
    if errors:
        more = f"; and {len(errors) - _NAMED} more" if len(errors) > _NAMED else ""
        shown = "; ".join(map(str, errors[:_NAMED]))
        raise FedveilError(f"{name}: {len(errors)} pictures can't be read: {shown}{more}")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _look(path: Path) -> _Look:
    with open_picture(path) as image:
        look = _Look(image.mode, image.width, image.height)
    if look.mode not in GREY | COLOUR | DEEP:
        raise FedveilError(f"{path}: the pixels are of Pillow's mode {look.mode}; allowed: grey or colour")
    return look


def _deep(paths: list[Path], looks: list[_Look]) -> bool:
    """Return whether the pictures are of more than 8 bits."""
    deep = [look.mode in DEEP for look in looks]
    if any(deep) and not all(deep):
        one, other = paths[deep.index(True)], paths[deep.index(False)]
        raise FedveilError(f"{one}: this picture is of more than 8 bits and {other} is not; allowed: all or none")
    return any(deep)


def _extremes(path: Path) -> NDArray[np.float64]:
    with open_picture(path) as image:
        pixels = np.asarray(image, np.float64)
    if not np.isfinite(pixels).all():
        raise FedveilError(f"{path}: some pixels are NaN or infinite; allowed: finite numbers")
    # Whether they are whole decides what they are taken for, too.
    odd = pixels[pixels != np.rint(pixels)]
    return np.array([pixels.min(), pixels.max(), *odd[:1]])


def _common_range(extremes: list[NDArray[np.float64]], name: str) -> ValueRange:
    return value_range({"pictures": np.concatenate(extremes)}, name)


def _read(path: Path, size: int, fit: Fit, grey: bool, used: ValueRange | None) -> NDArray[np.uint8]:
    with open_picture(path) as image:
        mode = "L" if grey else "RGB"
        image.draft(mode, (_FINER * size, _FINER * size))
        upright = ImageOps.exif_transpose(image)
        if used is not None:
            upright = Image.fromarray(used.bytes_of(np.asarray(upright)))
        return np.asarray(fitted(upright.convert(mode), size, fit), np.uint8)
