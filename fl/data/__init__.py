"""Labelled images by name: `load_data` for a trial, `available` and `fetch` for ``fedveil data``.

To add a data set, write a `fl.data.source.Source` in a file of its own, register it there, and import it
here.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fedveil.fl.data import folder, medmnist, mni152, npz, torchvision
from fedveil.fl.data.images import ImageData, Images
from fedveil.fl.data.search import search_folders
from fedveil.fl.data.source import DataEntry, Source, named, prefixed
from fedveil.fl.data.subsets import limited, split_public
from fedveil.fl.errors import unknown_name

__all__ = ["DataEntry", "ImageData", "Images", "available", "fetch", "load_data", "split_public"]

# Importing a source registers it.
_SOURCES = (folder, medmnist, mni152, npz, torchvision)


def load_data(name: str, *, size: int | None = None, limit: int | None = None, seed: int = 0) -> ImageData:
    """Load a data set by name, downloading it into ``data/cache`` if no search folder has it.

    Args:
        name: of `available`, or ``npz:PATH`` or ``folder:PATH``.
        size: pixels a side; None for the data set's default.
        limit: keep at most so many images of each split, stratified by class; None for all.
        seed: decides which images ``limit`` keeps, and the split of a ``folder:`` without one.

    Raises:
        FedveilError: the name, the size or the limit is not allowed, or the files are missing, damaged or
            malformed.
    """
    data = _source(name).load(size=size, seed=seed)
    if limit is None:
        return data
    return replace(
        data,
        train=limited(data.train, limit, seed, "train"),
        val=limited(data.val, limit, seed, "val"),
        test=limited(data.test, limit, seed, "test"),
    )


def available() -> list[DataEntry]:
    """List the data sets that have a name, then the other ``.npz`` files of the search folders."""
    entries = [named[name].entry() for name in named]
    used = {path.name for entry in entries for path in entry.found}
    loose = sorted({path.name for place in search_folders() for path in place.glob("*.npz")} - used)
    return entries + [prefixed["npz"](name).entry() for name in loose]


def fetch(name: str, *, size: int | None = None) -> Path:
    """Return where a data set is, downloading it into ``data/cache`` if no search folder has it undamaged.

    Raises:
        FedveilError: the name or the size is not allowed, the download failed, or there is nothing to
            download from.
    """
    return _source(name).fetch(size=size)


def _source(name: str) -> Source:
    prefix, colon, path = name.partition(":")
    if colon and path and prefix in prefixed:
        return prefixed[prefix](path)
    if name not in named:
        raise unknown_name("data set", name, [*named, *(f"{kind}:PATH" for kind in prefixed)])
    return named[name]
