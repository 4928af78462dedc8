"""``folder:PATH``: image files in one folder per class (torchvision's ImageFolder layout)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedveil.fl.data.checks import SplitArrays, checked_data, checked_images
from fedveil.fl.data.files import state_of
from fedveil.fl.data.fitting import DEFAULT, Fit, check_fit
from fedveil.fl.data.images import ImageData, Images
from fedveil.fl.data.pictures import read_pictures
from fedveil.fl.data.search import user_path
from fedveil.fl.data.source import DataEntry, Source, caution, prefixed
from fedveil.fl.errors import FedveilError, SettingError
from fedveil.fl.seeding import numpy_stream

_ENDINGS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
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
    of their names. Images become squares of one size and 8 bits (`fedveil.fl.data.pictures`), which `ImageData.notes` say;
    they stay grey if all are grey.

    Args:
        path: absolute, or relative to the working folder or to a search folder.
        fit: how pictures become squares.

    Raises:
        SettingError: there is no such ``fit``.
    """

    def __init__(self, path: str, fit: Fit = DEFAULT) -> None:
        self.path = path
        self.name = f"folder:{path}"
        check_fit(fit, self.name)
        self.fit: Fit = fit

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
        pictures = read_pictures(tuple(map(state_of, paths)), chosen, self.fit, self.name)
        rows = {path: row for row, path in enumerate(paths)}

        def part(files: tuple[LabelledFile, ...], split: str) -> Images:
            pixels = pictures.pixels[[rows[file.path] for file in files]]
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
            notes=tuple(map(caution, (*pictures.notes, *_left_out(root, self.name)))),
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


def _left_out(root: Path, name: str) -> Iterator[str]:
    """Say which files nobody reads, where one may have wanted them to be."""
    parts = [
        root / split for split in ("train", "val", "test") if (root / "train").is_dir() and (root / split).is_dir()
    ]
    places = parts or [root]
    beside = [path.name for place in {root, *places} for path in place.iterdir() if path.suffix.lower() in _ENDINGS]
    if beside:
        yield f"{name}: left out what lies beside the class folders: {_some(sorted(beside))} ({len(beside)} in all)"
    others = Counter(
        path.suffix.lower() or path.name
        for place in places
        for folder in place.iterdir()
        if folder.is_dir() and folder.name[0] != "."
        for path in folder.iterdir()
        if path.name[0] != "." and path.suffix.lower() not in _ENDINGS
    )
    if others:
        endings = ", ".join(sorted(_ENDINGS))
        what = f"{others.total()} files in class folders ({_some(sorted(others))})"
        yield f"{name}: left out {what}: pictures end in {endings}"


def _count(files: Sequence[LabelledFile]) -> str:
    return f"{len(files)} image file{'' if len(files) == 1 else 's'}"


def _hint(folder: Path, files: Sequence[LabelledFile]) -> str:
    """What may be wrong with a class folder without image files, as the end of a sentence."""
    if files:
        return ""
    inside = sorted(path for path in folder.iterdir() if path.name[0] != ".")
    if not inside:
        return "; it is empty: remove it if it is no class"
    folders = [path.name for path in inside if path.is_dir()]
    if folders:
        return f"; it holds folders ({_some(folders)}): image files have to lie in it, not below"
    endings = list(dict.fromkeys(path.suffix.lower() or path.name for path in inside))
    return f"; it holds other files ({_some(endings)}): image files end in {', '.join(sorted(_ENDINGS))}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _splits_on_disk(root: Path, classes: tuple[str, ...]) -> FileSplits:
    def files(split: str) -> tuple[LabelledFile, ...]:
        folder = root / split
        present = _subfolders(folder)
        for name in present:
            if name not in classes:
                raise FedveilError(f"{folder / name}: train has no such class; allowed: {', '.join(classes)}")
        found = {name: _files(folder / name, classes.index(name)) for name in present}
        for name, held in found.items():
            if split == "train" and not held:
                raise FedveilError(f"{folder / name}: 0 image files; allowed: at least one{_hint(folder / name, held)}")
        return tuple(file for held in found.values() for file in held)

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
            raise FedveilError(
                f"{root / name}: {_count(files)}; allowed: 2 and more, to train and to test on{_hint(root / name, files)}"
            )
        order = numpy_stream(seed, "data", "folder", name).permutation(len(files))
        shuffled = [files[index] for index in order]
        tests = max(1, round(_TEST_SHARE * len(files)))
        vals = min(round(_VAL_SHARE * len(files)), len(files) - tests - 1)
        test += shuffled[:tests]
        val += shuffled[tests : tests + vals]
        train += shuffled[tests + vals :]
    return FileSplits(tuple(train), tuple(val), tuple(test))
