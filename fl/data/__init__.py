"""Labelled images by name: `load_data` for a trial, `available` and `fetch` for ``fedveil data``.

To add a data set, write a `Source` in a file of its own, register it there with `register_data`, and import it here; a
plug-in does the same in the user's file.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from fedveil.fl.data import folder, medmnist, mni152, npz, torchvision
from fedveil.fl.data.files import state_of
from fedveil.fl.data.fitting import DEFAULT, Fit
from fedveil.fl.data.images import ImageData, Images
from fedveil.fl.data.search import search_folders
from fedveil.fl.data.source import DataEntry, Source, named, prefixed, register_data
from fedveil.fl.data.splits import TrainSplit, pooled, split_train
from fedveil.fl.data.subsets import limited
from fedveil.fl.errors import FedveilError, SettingError, unknown_name

__all__ = [
    "DataEntry",
    "ImageData",
    "Images",
    "Source",
    "TrainSplit",
    "available",
    "entry_of",
    "fetch",
    "load_data",
    "pooled",
    "register_data",
    "split_train",
]

# Importing a source registers it.
_SOURCES = (folder, medmnist, mni152, npz, torchvision)


def load_data(
    name: str,
    *,
    size: int | None = None,
    limit: int | None = None,
    pool: bool = False,
    seed: int = 0,
    fit: Fit | None = None,
) -> ImageData:
    """Load a data set by name, downloading it into ``data/cache`` if no search folder has it.

    The last few results are kept in the process and given again while the files are the same, so treat the tensors as
    read-only.

    >>> import fedveil as fv
    >>> data = fv.load_data('mni152', limit=30)
    >>> len(data.train), data.classes
    (30, ('sagittal', 'coronal', 'axial'))


    Args:
        name: of `available`, or ``npz:PATH`` or ``folder:PATH``.
        size: pixels a side; None for the data set's default.
        limit: keep at most so many images of each split, stratified by class; None for all.
        pool: draw the splits anew from all images (see `pooled`), before ``limit``.
        seed: decides which images ``limit`` keeps, the splits of ``pool``, and those of a ``folder:`` without any.
        fit: how pictures of ``folder:`` and ``npz:`` become squares of ``size``: ``pad`` (all of the picture on black; the
            default), ``resize`` (all of it, drawn out) or ``crop`` (its centred square).

    Raises:
        FedveilError: the name, the size, the limit or the fit is not allowed, or the files are missing, damaged or
            malformed.
    """
    places = [file for place in _source(name, fit).entry().found for file in (place, *sorted(place.rglob("*")))]
    return _loaded(name, size, limit, pool, seed, fit, tuple(map(state_of, places)))


@lru_cache(maxsize=4)
def _loaded(
    name: str, size: int | None, limit: int | None, pool: bool, seed: int, fit: Fit | None, files: tuple[object, ...]
) -> ImageData:
    """Load as `load_data` does; other ``files`` are another call."""
    data = _read(name, size, seed if _source(name).seeded else 0, fit, files)
    if pool:
        data = pooled(data, seed)
    if limit is None:
        return data
    return replace(
        data,
        train=limited(data.train, limit, seed, "train"),
        val=limited(data.val, limit, seed, "val"),
        test=limited(data.test, limit, seed, "test"),
    )


@lru_cache(maxsize=2)
def _read(name: str, size: int | None, seed: int, fit: Fit | None, files: tuple[object, ...]) -> ImageData:
    """Return what the source has, which most read once for all seeds."""
    return _source(name, fit).load(size=size, seed=seed)


def available() -> list[DataEntry]:
    """List the data sets that have a name, then the other ``.npz`` files of the search folders."""
    entries = [named[name].entry() for name in named]
    used = {path.name for entry in entries for path in entry.found}
    return entries + [prefixed["npz"](name, DEFAULT).entry() for name in sorted(_archives() - used)]


def entry_of(name: str) -> DataEntry:
    """Return what is known of a data set without reading its images.

    Raises:
        FedveilError: there is none of that name.
    """
    return _source(name).entry()


def fetch(name: str, *, size: int | None = None) -> Path:
    """Return where a data set is, downloading it into ``data/cache`` if no search folder has it undamaged.

    Raises:
        FedveilError: the name or the size is not allowed, the download failed, or there is nothing to
            download from. It says what is here in the official files' place.
    """
    source = _source(name)
    found = source.entry().found
    try:
        return source.fetch(size=size)
    except SettingError:
        raise
    except FedveilError as error:
        if not found:
            raise
        raise FedveilError(f"{error}; experiments take what is here: {found[0]}") from error


def _archives() -> set[str]:
    """Return the names of the ``.npz`` files of the search folders; a name that none can have is looked up nowhere."""
    return {path.name for place in search_folders() for path in place.glob("*.npz")}


def _source(name: str, fit: Fit | None = None) -> Source:
    prefix, colon, path = name.partition(":")
    if colon and path and prefix in prefixed:
        return prefixed[prefix](path, DEFAULT if fit is None else fit)
    if name not in named:
        if f"{name}.npz" in _archives():
            raise FedveilError(f"unknown data set {name!r}; there is a file of that name: npz:{name}.npz")
        raise unknown_name("data set", name, [*named, *(f"{kind}:PATH" for kind in prefixed)])
    if fit is not None:
        raise SettingError(name, "fit", fit, f"it is for {' and '.join(f'{kind}:' for kind in prefixed)} alone")
    return named[name]
