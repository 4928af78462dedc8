"""CIFAR-10, MNIST and Fashion-MNIST, read by hand from the official files (torchvision downloads them)."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from fedveil.fl.data.checks import Array, SplitArrays, checked_data, checked_images
from fedveil.fl.data.download import download, file_md5, official
from fedveil.fl.data.files import open_plain, read_plain
from fedveil.fl.data.images import ImageData
from fedveil.fl.data.npz import image_data, read_npz
from fedveil.fl.data.search import cache_folder, find_all, find_first
from fedveil.fl.data.source import DataEntry, Source, caution, chosen_size, named, register_data
from fedveil.fl.errors import FedveilError
from fedveil.fl.memory import check_room

_CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR_FOLDER = "cifar-10-batches-bin"
_CIFAR_ARCHIVE = "cifar-10-binary.tar.gz"
_CIFAR_URL = f"https://www.cs.toronto.edu/~kriz/{_CIFAR_ARCHIVE}"
_CIFAR_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
_CIFAR_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_CIFAR_TEST = "test_batch.bin"
_CIFAR_BATCH = 10_000
"""Records in each official file."""
_CIFAR_RECORD = 1 + 3 * 32 * 32
"""One byte of label, then the red, the green and the blue plane."""


@register_data("cifar10")
class Cifar10(Source):
    """CIFAR-10 (A. Krizhevsky, 2009) from its *binary* version: torchvision's layout is pickles.

    Looked for, in this order: the folder ``cifar-10-batches-bin``, the archive ``cifar-10-binary.tar.gz``,
    and ``cifar10.npz`` or ``cifar10_subset.npz`` with MedMNIST's keys. There is no validation split.
    """

    seeded: ClassVar[bool] = False

    def entry(self) -> DataEntry:
        """See `Source.entry`."""
        found = find_first(list(_CIFAR_READERS))
        return DataEntry(
            name="cifar10",
            origin="CIFAR-10 (University of Toronto)",
            sizes=(32,),
            default_size=32,
            channels=3,
            classes=10,
            found=() if found is None else (found,),
        )

    def load(self, *, size: int | None, seed: int) -> ImageData:
        """See `Source.load`. From an ``.npz`` there is a warning and a note, since none is official."""
        chosen_size(self.entry(), size)
        path = find_first(list(_CIFAR_READERS)) or self.fetch(size=size)
        return _CIFAR_READERS[path.name](path)

    def fetch(self, *, size: int | None) -> Path:
        """See `Source.fetch`. The unpacked folder will do as well, if all its files have their full size."""
        chosen_size(self.entry(), size)
        whole = next(filter(_is_whole_cifar, find_all(_CIFAR_FOLDER)), None)
        target = cache_folder() / _CIFAR_ARCHIVE
        return (
            whole
            or official(_CIFAR_ARCHIVE, _CIFAR_MD5)
            or download([_CIFAR_URL], target, md5=_CIFAR_MD5, what="cifar10")
        )


def _is_whole_cifar(folder: Path) -> bool:
    files = [folder / member for member in (*_CIFAR_TRAIN, _CIFAR_TEST)]
    return all(file.is_file() and file.stat().st_size == _CIFAR_BATCH * _CIFAR_RECORD for file in files)


def _cifar_npz(path: Path) -> ImageData:
    arrays = read_npz(path)
    if arrays.train.pixels.shape[1:] != (32, 32, 3):
        raise FedveilError(f"{path}: train_images: the shape is {arrays.train.pixels.shape}; allowed: (n, 32, 32, 3)")
    note = caution(
        f"{path} is not the official release: {len(arrays.train.labels)} of 50000 training images and"
        f" {len(arrays.test.labels)} of 10000 test images; accuracies may not compare with published ones"
    )
    return image_data(arrays, name="cifar10", where=str(path), classes=_CIFAR_CLASSES, published=True, notes=(note,))


def _cifar_folder(path: Path) -> ImageData:
    def content(member: str) -> bytes:
        return read_plain(path / member)

    return _cifar_binary(path, content, notes=())


def _cifar_archive(path: Path) -> ImageData:
    try:
        with open_plain(path) as file, tarfile.open(fileobj=file, mode="r:gz") as archive:
            md5 = file_md5(path)
            other = f"{path} is not the official file: its md5 is {md5}, not {_CIFAR_MD5}"
            notes = () if md5 == _CIFAR_MD5 else (other,)

            def content(member: str) -> bytes:
                inside = archive.getmember(f"{_CIFAR_FOLDER}/{member}")
                check_room(inside.size, f"{path}/{member}")
                stream = archive.extractfile(inside)
                return b"" if stream is None else stream.read()

            return _cifar_binary(path, content, notes=tuple(map(caution, notes)))
    except KeyError as error:
        raise FedveilError(f"{path}: the archive holds no {_CIFAR_FOLDER}/*.bin ({error.args[0]})") from error
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise FedveilError(f"{path}: the archive is damaged or cut short ({error})") from error


def _cifar_binary(path: Path, content: Callable[[str], bytes], *, notes: tuple[str, ...]) -> ImageData:
    def read(members: Sequence[str]) -> SplitArrays:
        parts = [_cifar_records(content(member), f"{path}/{member}") for member in members]
        records = np.concatenate(parts)
        planes = records[:, 1:].reshape(-1, 3, 32, 32)
        return SplitArrays(planes.transpose(0, 2, 3, 1), records[:, 0])

    return checked_data(
        name="cifar10",
        where=str(path),
        train=checked_images(read(_CIFAR_TRAIN), where=str(path), split="train"),
        val=None,
        test=checked_images(read([_CIFAR_TEST]), where=str(path), split="test"),
        classes=_CIFAR_CLASSES,
        published=True,
        notes=notes,
    )


def _cifar_records(content: bytes, where: str) -> Array:
    if not content or len(content) % _CIFAR_RECORD:
        raise FedveilError(
            f"{where}: {len(content)} bytes, cut short; allowed: multiples of {_CIFAR_RECORD} (1 + 32x32x3)"
        )
    return np.frombuffer(content, np.uint8).reshape(-1, _CIFAR_RECORD)


_CIFAR_READERS: dict[str, Callable[[Path], ImageData]] = {
    _CIFAR_FOLDER: _cifar_folder,
    _CIFAR_ARCHIVE: _cifar_archive,
    "cifar10.npz": _cifar_npz,
    "cifar10_subset.npz": _cifar_npz,
}


@dataclass(frozen=True)
class IdxFile:
    """One file of an MNIST-like set and its official md5."""

    name: str
    md5: str


@dataclass(frozen=True)
class IdxSource(Source):
    """An MNIST-like set: four gzipped IDX files in ``FOLDER/raw``, as with torchvision. No validation split.

    Attributes:
        name: as in the configuration.
        origin: for the listing.
        folder: ``MNIST`` or ``FashionMNIST``.
        mirrors: addresses to put a file's name behind, best first.
        classes: one name per label.
        train_images, train_labels, test_images, test_labels: the four files.
    """

    seeded: ClassVar[bool] = False

    name: str
    origin: str
    folder: str
    mirrors: tuple[str, ...]
    classes: tuple[str, ...]
    train_images: IdxFile
    train_labels: IdxFile
    test_images: IdxFile
    test_labels: IdxFile

    def files(self) -> tuple[IdxFile, ...]:
        """All four files."""
        return self.train_images, self.train_labels, self.test_images, self.test_labels

    def entry(self) -> DataEntry:
        """See `Source.entry`."""
        raw = self._raw()
        return DataEntry(
            name=self.name,
            origin=self.origin,
            sizes=(28,),
            default_size=28,
            channels=1,
            classes=len(self.classes),
            found=() if raw is None else (raw,),
        )

    def load(self, *, size: int | None, seed: int) -> ImageData:
        """See `Source.load`. A file whose md5 is not the official one is used, with a warning and a note."""
        chosen_size(self.entry(), size)
        raw = self._raw() or self.fetch(size=size)
        notes = []
        for file in self.files():
            if not (raw / file.name).is_file():
                raise FedveilError(
                    f"{raw / file.name}: there is no such file;"
                    f" needed: {', '.join(needed.name for needed in self.files())}"
                )
            md5 = file_md5(raw / file.name)
            if md5 != file.md5:
                notes.append(caution(f"{raw / file.name} is not the official file: its md5 is {md5}, not {file.md5}"))
        train = SplitArrays(read_idx(raw / self.train_images.name), read_idx(raw / self.train_labels.name))
        test = SplitArrays(read_idx(raw / self.test_images.name), read_idx(raw / self.test_labels.name))
        return checked_data(
            name=self.name,
            where=str(raw),
            train=checked_images(train, where=str(raw), split="train"),
            val=None,
            test=checked_images(test, where=str(raw), split="test"),
            classes=self.classes,
            published=True,
            notes=tuple(notes),
        )

    def fetch(self, *, size: int | None) -> Path:
        """See `Source.fetch`. Returns the folder of the four files."""
        chosen_size(self.entry(), size)
        for found in find_all(f"{self.folder}/raw"):
            if all((found / file.name).is_file() and file_md5(found / file.name) == file.md5 for file in self.files()):
                return found
        raw = cache_folder() / self.folder / "raw"
        for file in self.files():
            urls = [f"{mirror}{file.name}" for mirror in self.mirrors]
            download(urls, raw / file.name, md5=file.md5, what=self.name)
        return raw

    def _raw(self) -> Path | None:
        # The last file: an interrupted download has left the ones before it.
        last = find_first([f"{self.folder}/raw/{self.files()[-1].name}"])
        return None if last is None else last.parent


def read_idx(path: Path) -> Array:
    """Read a gzipped IDX file of bytes: two zeros, type 8, number of dimensions, big-endian sizes, data.

    Raises:
        FedveilError: the file is damaged, or is not such a file.
    """
    try:
        with open_plain(path) as file, gzip.open(file) as stream:
            head = stream.read(4)
            if len(head) < 4 or head[:3] != b"\x00\x00\x08":
                raise FedveilError(f"{path}: this is no IDX file of bytes (it begins with {head!r})")
            shape = tuple(np.frombuffer(stream.read(4 * head[3]), ">u4").tolist())
            size = int(np.prod(shape, dtype=object))
            check_room(size, f"{path}: the shape {shape}")
            data = stream.read(size + 1)  # no further, however much it inflates to
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise FedveilError(f"{path}: the file is damaged or cut short ({error})") from error
    if len(shape) != head[3] or size != len(data):
        count = f"more than {size}" if len(data) > size else str(len(data))
        raise FedveilError(f"{path}: {count} bytes of data for the shape {shape}; the file is damaged")
    return np.frombuffer(data, np.uint8).reshape(shape)


named.register("mnist")(
    IdxSource(
        name="mnist",
        origin="MNIST (Y. LeCun et al., 1998)",
        folder="MNIST",
        mirrors=("https://ossci-datasets.s3.amazonaws.com/mnist/",),
        classes=tuple(map(str, range(10))),
        train_images=IdxFile("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        train_labels=IdxFile("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
        test_images=IdxFile("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
        test_labels=IdxFile("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
    )
)
named.register("fashionmnist")(
    IdxSource(
        name="fashionmnist",
        origin="Fashion-MNIST (H. Xiao et al., 2017)",
        folder="FashionMNIST",
        mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        classes=(
            "T-shirt/top",
            "trouser",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "ankle boot",
        ),
        train_images=IdxFile("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        train_labels=IdxFile("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
        test_images=IdxFile("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
        test_labels=IdxFile("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
    )
)
