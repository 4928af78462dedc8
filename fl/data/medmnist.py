"""The 2-D sets of MedMNIST v2 (J. Yang et al., Scientific Data 10, 41, 2023) in their four sizes."""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from fedveil.fl.data.checks import SplitArrays
from fedveil.fl.data.download import download, file_md5, official
from fedveil.fl.data.images import ImageData
from fedveil.fl.data.npz import NpzArrays, image_data, read_npz
from fedveil.fl.data.search import cache_folder, find_first
from fedveil.fl.data.source import DataEntry, Source, caution, chosen_size, named
from fedveil.fl.errors import FedveilError

FLAGS = (
    "bloodmnist",
    "breastmnist",
    "chestmnist",
    "dermamnist",
    "octmnist",
    "organamnist",
    "organcmnist",
    "organsmnist",
    "pathmnist",
    "pneumoniamnist",
    "retinamnist",
    "tissuemnist",
)
"""The flags of the 2-D sets, as in ``medmnist.INFO``."""

SIZES = (28, 64, 128, 224)


@dataclass(frozen=True)
class Release:
    """What ``medmnist.INFO`` says of one set.

    Attributes:
        channels: 1 or 3.
        classes: one name per label; for a multi-label set one per finding.
        multi_label: labels are (n, findings) of 0 and 1.
        urls: by size.
        md5s: by size, in hexadecimal.
    """

    channels: int
    classes: tuple[str, ...]
    multi_label: bool
    urls: dict[int, str]
    md5s: dict[int, str]


@cache
def release(flag: str) -> Release:
    """Look ``flag`` up in the table of the installed medmnist.

    The table is a literal and is read as such: importing medmnist would pull in pandas and scikit-learn and
    make a folder in the user's home.
    """
    spec = find_spec("medmnist")
    if spec is None or spec.origin is None:
        raise FedveilError(f"{flag}: the package medmnist is not installed")
    info = _info(Path(spec.origin).with_name("info.py"))[flag]
    endings = {size: "" if size == 28 else f"_{size}" for size in SIZES}
    return Release(
        channels=info["n_channels"],
        classes=tuple(info["label"][str(label)] for label in range(len(info["label"]))),
        multi_label=info["task"].startswith("multi-label"),
        urls={size: info[f"url{ending}"] for size, ending in endings.items()},
        md5s={size: info[f"MD5{ending}"] for size, ending in endings.items()},
    )


@cache
def _info(path: Path) -> dict[str, dict]:  # type: ignore[type-arg]
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "INFO":
            table: dict[str, dict] = ast.literal_eval(node.value)  # type: ignore[type-arg]
            return table
    raise FedveilError(f"{path}: no table INFO; install medmnist 3.0.2")


class MedMNIST(Source):
    """One 2-D set. The file is ``FLAG.npz`` (28 px) or ``FLAG_SIZE.npz``, as medmnist itself names it.

    ChestMNIST is multi-label (14 findings); it is reduced to two classes, no finding and any finding.

    Args:
        flag: as in `FLAGS`.
    """

    seeded: ClassVar[bool] = False

    def __init__(self, flag: str) -> None:
        self.name = flag

    def entry(self) -> DataEntry:
        """See `Source.entry`."""
        info = release(self.name)
        found = [find_first([self._filename(size)]) for size in SIZES]
        return DataEntry(
            name=self.name,
            origin="MedMNIST v2 (Zenodo)",
            sizes=SIZES,
            default_size=28,
            channels=info.channels,
            classes=2 if info.multi_label else len(info.classes),
            found=tuple(path for path in found if path is not None),
        )

    def load(self, *, size: int | None, seed: int) -> ImageData:
        """See `Source.load`. A file whose md5 is not the official one is used, with a warning and a note."""
        chosen = chosen_size(self.entry(), size)
        info = release(self.name)
        path = find_first([self._filename(chosen)]) or self.fetch(size=chosen)
        arrays = read_npz(path)
        expected = (chosen, chosen) if info.channels == 1 else (chosen, chosen, 3)
        if arrays.train.pixels.shape[1:] != expected:
            shape = arrays.train.pixels.shape
            raise FedveilError(f"{path}: train_images: the shape is {shape}; allowed: {('n', *expected)}")
        notes: tuple[str, ...] = ()
        md5 = file_md5(path)
        if md5 != info.md5s[chosen]:
            notes += (caution(f"{path} is not the official file: its md5 is {md5}, not {info.md5s[chosen]}"),)
        classes = info.classes
        if info.multi_label:
            arrays = _any_finding(arrays, len(info.classes), path)
            classes = ("no finding", "any finding")
            notes += (f"{self.name}: {len(info.classes)} findings were reduced to {' / '.join(classes)}",)
        return image_data(arrays, name=self.name, where=str(path), classes=classes, published=True, notes=notes)

    def fetch(self, *, size: int | None) -> Path:
        """See `Source.fetch`."""
        chosen = chosen_size(self.entry(), size)
        url, md5 = release(self.name).urls[chosen], release(self.name).md5s[chosen]
        name = self._filename(chosen)
        return official(name, md5) or download([url], cache_folder() / name, md5=md5, what=self.name)

    def _filename(self, size: int) -> str:
        return f"{self.name}.npz" if size == 28 else f"{self.name}_{size}.npz"


def _any_finding(arrays: NpzArrays, findings: int, path: Path) -> NpzArrays:
    def reduced(split: SplitArrays, name: str) -> SplitArrays:
        labels = split.labels
        if labels.dtype.kind not in "iu" or labels.ndim != 2 or labels.shape[1] != findings:
            raise FedveilError(
                f"{path}: {name}_labels is {labels.dtype} {labels.shape}; allowed: integers (n, {findings})"
            )
        if labels.size and (labels.min() < 0 or labels.max() > 1):
            raise FedveilError(f"{path}: {name}_labels: a label is out of range; allowed: 0 and 1")
        return replace(split, labels=labels.max(axis=1))

    return replace(
        arrays,
        train=reduced(arrays.train, "train"),
        val=None if arrays.val is None else reduced(arrays.val, "val"),
        test=reduced(arrays.test, "test"),
    )


for _flag in FLAGS:
    named.register(_flag)(MedMNIST(_flag))
