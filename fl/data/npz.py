"""``npz:PATH``: a NumPy archive with MedMNIST's keys."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from fedveil.fl.data.checks import Array, SplitArrays, checked_data, checked_images
from fedveil.fl.data.classes import as_classes
from fedveil.fl.data.conversion import as_pictures
from fedveil.fl.data.files import check_members, open_plain
from fedveil.fl.data.fitting import DEFAULT, Fit, check_fit, fit_note, fitted_arrays
from fedveil.fl.data.images import ImageData
from fedveil.fl.data.search import user_path
from fedveil.fl.data.source import DataEntry, Source, caution, prefixed
from fedveil.fl.errors import FedveilError, SettingError
from fedveil.fl.memory import check_room

_REQUIRED = ("train_images", "train_labels", "test_images", "test_labels")
_VAL = ("val_images", "val_labels")
_NAMES = "label_names"


@dataclass(frozen=True)
class NpzArrays:
    """What an archive holds; see `SplitArrays`. ``val`` and ``label_names`` may be missing."""

    train: SplitArrays
    val: SplitArrays | None
    test: SplitArrays
    label_names: tuple[str, ...] | None


def read_npz(path: Path) -> NpzArrays:
    """Read an archive without ever unpickling.

    Raises:
        FedveilError: the file is missing or damaged, lacks a key, or holds pickled objects.
    """
    try:
        with open_plain(path) as file:
            if not zipfile.is_zipfile(file):
                raise FedveilError(f"{path}: this is no .npz archive, or it is damaged or cut short")
            with np.load(file, allow_pickle=False) as archive:
                return _arrays(path, archive)
    except FedveilError:
        raise
    except Exception as error:  # zipfile raises what its parts raise
        raise FedveilError(f"{path}: the archive is damaged or cut short ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """Return an error on one line; NumPy and tokenize write several, and some say nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def _arrays(path: Path, archive: np.lib.npyio.NpzFile) -> NpzArrays:
    keys = set(archive.files)
    missing = [key for key in _REQUIRED if key not in keys]
    if len(keys.intersection(_VAL)) == 1:
        missing += [key for key in _VAL if key not in keys]
    if missing:
        raise FedveilError(
            f"{path}: {', '.join(missing)} missing; expected {', '.join(_REQUIRED)}"
            f" and, if there is a validation split, {', '.join(_VAL)};"
            f" found {', '.join(sorted(keys)) or 'nothing'}"
        )

    assert archive.zip is not None  # until it is closed
    read = [key for key in (*_REQUIRED, *_VAL, _NAMES) if key in keys]
    wanted = {name for key in read for name in (key, f"{key}.npy")}
    members = [member for member in archive.zip.infolist() if member.filename in wanted]
    # Each array is there twice: as read, and as a tensor.
    check_members(path, members, ", ".join(read), copies=2)

    def array(key: str) -> Array:
        try:
            return np.asarray(archive[key])
        except Exception as error:  # zipfile, its decompressors and NumPy's header parser each raise their own
            # NumPy has no exception class of its own for this.
            if isinstance(error, ValueError) and "Object arrays" in str(error):
                reason = "holds pickled objects, which are never loaded"
            elif isinstance(error, MemoryError):
                reason = f"is damaged, or too large for this machine ({_reason(error)})"
            else:
                reason = f"is damaged or cut short ({_reason(error)})"
            raise FedveilError(f"{path}: {key} {reason}; allowed: plain arrays of numbers") from error

    names = array(_NAMES) if _NAMES in keys else None
    if names is not None and (names.dtype.kind != "U" or names.ndim != 1):
        raise FedveilError(f"{path}: label_names is {names.dtype} {names.shape}; allowed: (classes,) text")
    return NpzArrays(
        train=SplitArrays(array("train_images"), array("train_labels")),
        val=SplitArrays(array("val_images"), array("val_labels")) if keys.issuperset(_VAL) else None,
        test=SplitArrays(array("test_images"), array("test_labels")),
        label_names=None if names is None else tuple(names.tolist()),
    )


def image_data(
    arrays: NpzArrays,
    *,
    name: str,
    where: str,
    classes: tuple[str, ...] | None,
    published: bool,
    notes: tuple[str, ...] = (),
) -> ImageData:
    """Check ``arrays`` and put them together; see `checked_data`."""
    val = None if arrays.val is None else checked_images(arrays.val, where=where, split="val")
    return checked_data(
        name=name,
        where=where,
        train=checked_images(arrays.train, where=where, split="train"),
        val=val,
        test=checked_images(arrays.test, where=where, split="test"),
        classes=classes,
        published=published,
        notes=notes,
    )


@prefixed.register("npz")
class NpzSource(Source):
    """The user's own archive.

    Keys: ``train_images`` and ``test_images`` (n, H, W), (n, H, W, C) or (n, C, H, W), C 1 or 3, and ``train_labels`` and
    ``test_labels`` (n,) or (n, 1) whole numbers or (n, classes) one-hot rows; optional: ``val_images`` with ``val_labels``,
    and ``label_names`` (classes,) text. Images are bytes, or are made so (`fedveil.fl.data.conversion`), and labels are
    whole numbers, or are made so (`fedveil.fl.data.classes`), which `ImageData.notes` say.

    Args:
        path: absolute, or relative to the working folder or to a search folder.
        fit: how pictures become squares, where a ``size`` is asked for that they do not have.

    Raises:
        SettingError: there is no such ``fit``.
    """

    seeded: ClassVar[bool] = False

    def __init__(self, path: str, fit: Fit = DEFAULT) -> None:
        self.path = path
        self.name = f"npz:{path}"
        check_fit(fit, self.name)
        self.fit: Fit = fit

    def entry(self) -> DataEntry:
        """See `Source.entry`."""
        return DataEntry(
            name=self.name,
            origin="your file with MedMNIST's keys",
            sizes=(),
            default_size=None,
            channels=None,
            classes=None,
            found=(user_path(self.path, what=self.name),),
        )

    def load(self, *, size: int | None, seed: int) -> ImageData:
        """See `Source.load`. Images keep the size that they have in the file, if no other is asked for."""
        path = user_path(self.path, what=self.name)
        if size is not None and size < 1:
            raise SettingError(self.name, "size", size, "allowed: 1 and above")
        arrays, notes = _converted(read_npz(path), str(path))
        if size is not None:
            arrays, more = _sized(arrays, size, self.fit, str(path))
            notes += more
        return image_data(
            arrays,
            name=self.name,
            where=str(path),
            classes=arrays.label_names,
            published=False,
            notes=tuple(map(caution, notes)),
        )


def _splits(arrays: NpzArrays) -> dict[str, Array]:
    parts = {"train": arrays.train, "val": arrays.val, "test": arrays.test}
    return {f"{split}_images": part.pixels for split, part in parts.items() if part is not None}


def _with(arrays: NpzArrays, images: Mapping[str, Array]) -> NpzArrays:
    """The same with other images, by the names of `_splits`."""
    return _each(arrays, lambda split, part: replace(part, pixels=images[f"{split}_images"]))


def _each(arrays: NpzArrays, change: Callable[[str, SplitArrays], SplitArrays]) -> NpzArrays:
    val = None if arrays.val is None else change("val", arrays.val)
    return replace(arrays, train=change("train", arrays.train), val=val, test=change("test", arrays.test))


def _converted(arrays: NpzArrays, where: str) -> tuple[NpzArrays, tuple[str, ...]]:
    found, notes = as_pictures(_splits(arrays), where)
    labels = {"train": arrays.train.labels, "test": arrays.test.labels}
    if arrays.val is not None:
        labels["val"] = arrays.val.labels
    numbers, more = as_classes({f"{split}_labels": given for split, given in labels.items()}, where)
    return _each(
        _with(arrays, found), lambda split, part: replace(part, labels=numbers[f"{split}_labels"])
    ), notes + more


def _sized(arrays: NpzArrays, size: int, fit: Fit, where: str) -> tuple[NpzArrays, tuple[str, ...]]:
    """Return the images at ``size`` px a side, and what was done, if they are not so already."""
    parts = _splits(arrays)
    if not all(map(_well_shaped, parts.values())):
        return arrays, ()  # `checked_images` says what is wrong with the images as they are
    sides = dict.fromkeys(part.shape[1:3] for part in parts.values())
    if list(sides) == [(size, size)]:
        return arrays, ()
    count = sum(map(len, parts.values()))
    check_room(3 * size * size * count, f"{where}: images of {size}x{size} px")
    had = " and ".join(f"{height}x{width}" for height, width in sides)
    notes = [f"{where}: images of {had} px were scaled to {size}x{size}"]
    odd = sum(len(part) for part in parts.values() if part.shape[1] != part.shape[2])
    if odd:
        notes.append(fit_note(where, odd, count, fit))
    return _with(arrays, {name: fitted_arrays(part, size, fit) for name, part in parts.items()}), tuple(notes)


def _well_shaped(pixels: Array) -> bool:
    return pixels.ndim in (3, 4) and 0 not in pixels.shape[1:] and pixels.shape[3:] in ((), (1,), (3,))
