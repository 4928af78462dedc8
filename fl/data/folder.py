"""``folder:PATH``: image files in one folder per class (torchvision's ImageFolder layout)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fedveil.fl.data.checks import SplitArrays, checked_data, checked_images
from fedveil.fl.data.files import FileState, open_picture, state_of
from fedveil.fl.data.images import ImageData, Images
from fedveil.fl.data.search import user_path
from fedveil.fl.data.source import DataEntry, Source, prefixed
from fedveil.fl.errors import FedveilError, SettingError
from fedveil.fl.memory import check_room
from fedveil.fl.seeding import numpy_stream

Pixels = NDArray[np.uint8]

_ENDINGS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_GREY_MODES = frozenset({"1", "L", "LA"})
_COLOUR_MODES = frozenset({"P", "RGB", "RGBA", "CMYK", "YCbCr"})
_DEFAULT_SIZE = 64
_TEST_SHARE = 0.2
_VAL_SHARE = 0.1


@dataclass(frozen=True)
class LabelledFile:
    """An image file and its class's number."""

    path: Path
    label: int


@dataclass(frozen=True)
class FileSplits:
    """Which file belongs to which split."""

    train: tuple[LabelledFile, ...]
    val: tuple[LabelledFile, ...]
    test: tuple[LabelledFile, ...]


@prefixed.register("folder")
class FolderSource(Source):
    """The user's own image files.

    Either ``PATH/train/CLASS/*``, ``PATH/test/CLASS/*`` and perhaps ``PATH/val/CLASS/*``, or
    ``PATH/CLASS/*``, which is split 70/10/20 within each class by the seed. Classes are numbered in the order
    of their names. Images are cropped to a centred square and resized; they stay grey if all are grey.

    Args:
        path: absolute, or relative to the working folder or to a search folder.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = f"folder:{path}"

    def entry(self) -> DataEntry:
        """See `Source.entry`."""
        return DataEntry(
            name=self.name,
            origin="your image files, one folder per class",
            sizes=(),
            default_size=_DEFAULT_SIZE,
            channels=None,
            classes=None,
            found=(user_path(self.path, what=self.name),),
        )

    def load(self, *, size: int | None, seed: int) -> ImageData:
        """See `Source.load`. Any size from 1 up is allowed."""
        chosen = _DEFAULT_SIZE if size is None else size
        if chosen < 1:
            raise SettingError(self.name, "size", chosen, "allowed: 1 and above")
        root = user_path(self.path, what=self.name)
        if not root.is_dir():
            raise FedveilError(f"{root}: this is not a folder; for an archive of arrays use npz:{self.path}")
        try:
            classes, splits = _listed(root, seed)
        except OSError as error:
            raise FedveilError(f"{error.filename}: this folder cannot be read ({error.strerror})") from error
        paths = sorted({file.path for file in (*splits.train, *splits.val, *splits.test)})
        whole = _read_all(tuple(map(state_of, paths)), chosen, self.name)
        rows = {path: row for row, path in enumerate(paths)}

        def part(files: tuple[LabelledFile, ...], split: str) -> Images:
            pixels = whole[[rows[file.path] for file in files]]
            labels = np.array([file.label for file in files], np.int64)
            return checked_images(SplitArrays(pixels, labels), where=str(root), split=split)

        return checked_data(
            name=self.name,
            where=str(root),
            train=part(splits.train, "train"),
            val=part(splits.val, "val"),
            test=part(splits.test, "test"),
            classes=classes,
            published=False,
        )


def _listed(root: Path, seed: int) -> tuple[tuple[str, ...], FileSplits]:
    """Return the classes and which file belongs to which split."""
    ready_made = (root / "train").is_dir()
    classes = _subfolders(root / "train" if ready_made else root)
    return classes, _splits_on_disk(root, classes) if ready_made else _drawn_splits(root, classes, seed)


def _subfolders(folder: Path) -> tuple[str, ...]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(names) < 2:
        raise FedveilError(f"{folder}: {len(names)} class folders; allowed: at least two, each with image files")
    return tuple(names)


def _files(folder: Path, label: int) -> list[LabelledFile]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS and path.name[0] != ".")
    return [LabelledFile(path, label) for path in paths]


def _splits_on_disk(root: Path, classes: tuple[str, ...]) -> FileSplits:
    def files(split: str) -> tuple[LabelledFile, ...]:
        folder = root / split
        present = _subfolders(folder)
        for name in present:
            if name not in classes:
                raise FedveilError(f"{folder / name}: train has no such class; allowed: {', '.join(classes)}")
        return tuple(file for name in present for file in _files(folder / name, classes.index(name)))

    if not (root / "test").is_dir():
        raise FedveilError(f"{root}: there is train/ but no test/; needed: both, or class folders alone")
    return FileSplits(files("train"), files("val") if (root / "val").is_dir() else (), files("test"))


def _drawn_splits(root: Path, classes: tuple[str, ...], seed: int) -> FileSplits:
    train: list[LabelledFile] = []
    val: list[LabelledFile] = []
    test: list[LabelledFile] = []
    for label, name in enumerate(classes):
        files = _files(root / name, label)
        if len(files) < 2:
            raise FedveilError(f"{root / name}: {len(files)} image files; allowed: 2 and more, to train and to test on")
        order = numpy_stream(seed, "data", "folder", name).permutation(len(files))
        shuffled = [files[index] for index in order]
        tests = max(1, round(_TEST_SHARE * len(files)))
        vals = min(round(_VAL_SHARE * len(files)), len(files) - tests - 1)
        test += shuffled[:tests]
        val += shuffled[tests : tests + vals]
        train += shuffled[tests + vals :]
    return FileSplits(tuple(train), tuple(val), tuple(test))


@lru_cache(maxsize=1)  # another seed splits the same images otherwise
def _read_all(files: tuple[FileState, ...], size: int, name: str) -> Pixels:
    """Return the images, (n, size, size) if all are grey, else (n, size, size, 3)."""
    grey = all(_is_grey(path) for path, *_ in files)
    shape = (len(files), size, size) if grey else (len(files), size, size, 3)
    # Here, in the splits, and in the tensors that are made of these.
    check_room(3 * math.prod(shape), f"{name}: reading {len(files)} images of {size}x{size} px")
    pixels = np.empty(shape, np.uint8)
    for row, (path, *_) in enumerate(files):
        pixels[row] = _read(path, size, grey)
    return pixels


def _is_grey(path: Path) -> bool:
    with open_picture(path) as image:
        mode = image.mode
    # Pillow would clip 16-bit and floating-point pixels to a byte without a word.
    if mode not in _GREY_MODES and mode not in _COLOUR_MODES:
        raise FedveilError(f"{path}: the pixels are of Pillow's mode {mode}; allowed: 8 bits a channel")
    return mode in _GREY_MODES


def _read(path: Path, size: int, grey: bool) -> Pixels:
    with open_picture(path) as image:
        upright = ImageOps.exif_transpose(image).convert("L" if grey else "RGB")
        return np.asarray(ImageOps.fit(upright, (size, size), Image.Resampling.BILINEAR), np.uint8)
