"""What a source of images is, and the two tables of sources: by name, and by prefix (``npz:PATH``)."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from fedveil.fl.data.fitting import Fit
from fedveil.fl.data.images import ImageData
from fedveil.fl.errors import FedveilError, FedveilWarning, SettingError
from fedveil.fl.registry import Registry

Registered = TypeVar("Registered", bound=type)


@dataclass(frozen=True)
class DataEntry:
    """One line of ``fedveil data list``.

    Attributes:
        name: what `fedveil.fl.data.load_data` takes.
        origin: where the images come from.
        sizes: the allowed sizes in pixels (images are square); empty where the file decides.
        default_size: the size if none is asked for; None where the file decides.
        channels: 1 or 3; None if only the file knows.
        classes: number of classes; None if only the file knows.
        found: the files or folders that are here already, so that nothing is downloaded.
    """

    name: str
    origin: str
    sizes: tuple[int, ...]
    default_size: int | None
    channels: int | None
    classes: int | None
    found: tuple[Path, ...]

    @property
    def present(self) -> bool:
        """Whether the data set can be loaded, in some size, without a download."""
        return bool(self.found)

    def size_text(self) -> str:
        """The allowed sizes in words: ``28 to 64``, ``28, 64, 128, 224``, or ``as in the file``."""
        if not self.sizes:
            return "as in the file"
        if len(self.sizes) > 2 and self.sizes == tuple(range(self.sizes[0], self.sizes[-1] + 1)):
            return f"{self.sizes[0]} to {self.sizes[-1]}"
        return ", ".join(map(str, self.sizes))


class Source(ABC):
    """Images under one name. To add one, write `load` and register the class with `register_data`.

    >>> import fedveil as fv
    >>> class Brains(fv.Source):
    ...     def load(self, *, size, seed):
    ...         return fv.load_data('mni152', size=size, seed=seed)
    >>> Brains().load(size=28, seed=0).train.shape
    (1, 28, 28)
    """

    name: str
    """As in the configuration; a registered class has it from its registry."""
    seeded: ClassVar[bool] = True
    """False where `load` reads the same images whatever the seed: they are read once for all."""

    def entry(self) -> DataEntry:
        """Say what this source holds and what of it is on this machine. Never touches the network.

        A change of the files (or in the folders) that it has ``found`` makes `fedveil.fl.data.load_data` read anew.
        """
        origin = (type(self).__doc__ or "").strip().partition("\n")[0].removesuffix(".")
        return DataEntry(self.name, origin, sizes=(), default_size=None, channels=None, classes=None, found=())

    @abstractmethod
    def load(self, *, size: int | None, seed: int) -> ImageData:
        """Read all images, downloading what is missing.

        Args:
            size: pixels a side, None for the default.
            seed: decides a split that the source itself does not have.

        Raises:
            FedveilError: the size is not allowed, or the files are missing, damaged or malformed.
        """

    def fetch(self, *, size: int | None) -> Path:
        """Return where the official files are in the search folders, downloading into the cache what is nowhere.

        Where no one publishes such files, what was found counts.

        Raises:
            FedveilError: the size is not allowed, the download failed, or nothing was found and there is nothing to
                download from.
        """
        found = self.entry().found
        if not found:
            raise FedveilError(f"{self.name}: there is nothing to download")
        return found[0]


named: Registry[Source] = Registry("data set")
"""Sources by their whole name."""

prefixed: Registry[Callable[[str, Fit], Source]] = Registry("kind of data")
"""Source constructors by prefix; they are given what follows the colon, and how pictures become squares."""


def register_data(name: str) -> Callable[[Registered], Registered]:
    """Return a decorator that enters a `Source`, whose constructor takes no arguments, in `named`.

    Raises:
        FedveilError: ``name`` is taken already, or the class is no `Source`.
    """

    def enter(source: Registered) -> Registered:
        if not issubclass(source, Source):
            raise FedveilError(f"data set {name!r}: {source.__name__} is no Source")
        source.name = name
        named.register(name)(source())
        return source

    return enter


def chosen_size(entry: DataEntry, size: int | None) -> int:
    """Return ``size`` or the default of ``entry``.

    Raises:
        FedveilError: the size is not among those of ``entry``.
    """
    chosen = entry.default_size if size is None else size
    if chosen is None or chosen not in entry.sizes:
        raise SettingError(entry.name, "size", size, f"allowed: {entry.size_text()}")
    return chosen


def caution(text: str) -> str:
    """Warn of ``text``, and return it so that it can be kept in `ImageData.notes`."""
    warnings.warn(text, FedveilWarning, stacklevel=3)
    return text
