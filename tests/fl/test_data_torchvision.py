import gzip
import io
import struct
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from fedveil.fl.data import fetch, load_data
from fedveil.fl.data.download import file_md5
from fedveil.fl.data.source import named
from fedveil.fl.data.torchvision import IdxSource, read_idx
from fedveil.fl.errors import FedveilError, SettingError

TRAIN = [f"data_batch_{number}.bin" for number in range(1, 6)]
IDX = {
    "train-images-idx3-ubyte.gz": (20, 28, 28),
    "train-labels-idx1-ubyte.gz": (20,),
    "t10k-images-idx3-ubyte.gz": (10, 28, 28),
    "t10k-labels-idx1-ubyte.gz": (10,),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the only one to be searched."""
    work = tmp_path / "checkout"
    work.mkdir()
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr("fedveil.fl.data.search._REPOSITORY", work)
    monkeypatch.setenv("FEDVEIL_DATA", str(data))
    return data


def records(labels: list[int]) -> bytes:
    """CIFAR records whose red, green and blue planes are the label plus 10, 20 and 30."""
    planes = [
        bytes([label, *([label + 10] * 1024), *([label + 20] * 1024), *([label + 30] * 1024)]) for label in labels
    ]
    return b"".join(planes)


def cifar_files() -> dict[str, bytes]:
    files = {name: records([2 * number, 2 * number + 1]) for number, name in enumerate(TRAIN)}
    return files | {"test_batch.bin": records([9, 0])}


def save_folder(folder: Path) -> None:
    place = folder / "cifar-10-batches-bin"
    place.mkdir()
    for name, content in cifar_files().items():
        (place / name).write_bytes(content)


def save_archive(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def save_npz(path: Path, size: int = 32) -> None:
    images = np.zeros((10, size, size, 3), np.uint8)
    images[..., 1] = 5
    np.savez(path, train_images=images, train_labels=np.arange(10), test_images=images, test_labels=np.arange(10))


def idx(shape: tuple[int, ...], content: bytes) -> bytes:
    return gzip.compress(bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + content)


def save_idx(folder: Path, name: str = "MNIST") -> Path:
    raw = folder / name / "raw"
    raw.mkdir(parents=True)
    for file, shape in IDX.items():
        values = np.arange(np.prod(shape)) % (256 if len(shape) == 3 else 10)
        (raw / file).write_bytes(idx(shape, values.astype(np.uint8).tobytes()))
    return raw


def test_cifar_from_the_binary_folder(folder: Path) -> None:
    save_folder(folder)
    data = load_data("cifar10")
    assert data.train.labels.tolist() == list(range(10))
    assert data.train.shape == (3, 32, 32)
    assert data.train.pixels[4, :, 31, 7].tolist() == [14, 24, 34]
    assert data.test.labels.tolist() == [9, 0]
    assert len(data.val) == 0
    assert data.classes[:2] == ("airplane", "automobile")
    assert data.published
    assert data.notes == ()


def test_cifar_from_the_archive_warns_of_its_md5(folder: Path) -> None:
    save_archive(folder, cifar_files())
    with pytest.warns(UserWarning, match="c32a1d4ab5d03f1284b67883e8d87530"):
        data = load_data("cifar10")
    assert data.train.pixels[9, :, 0, 0].tolist() == [19, 29, 39]
    assert len(data.notes) == 1


def test_the_official_archive_has_no_notes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_archive(folder, cifar_files())
    monkeypatch.setattr("fedveil.fl.data.torchvision.file_md5", lambda _: "c32a1d4ab5d03f1284b67883e8d87530")
    assert load_data("cifar10").notes == ()


@pytest.mark.parametrize("name", ["cifar10.npz", "cifar10_subset.npz"])
def test_cifar_from_an_npz_says_that_it_is_a_subset(folder: Path, name: str) -> None:
    save_npz(folder / name)
    with pytest.warns(UserWarning, match="10 of 50000 training images and 10 of 10000 test images"):
        data = load_data("cifar10")
    assert data.train.pixels[0, :, 0, 0].tolist() == [0, 5, 0]
    assert len(data.notes) == 1


def test_the_whole_of_cifar_is_preferred_to_a_subset(folder: Path) -> None:
    save_npz(folder / "cifar10_subset.npz")
    save_folder(folder)
    assert load_data("cifar10").notes == ()


def test_damaged_cifar(folder: Path) -> None:
    save_npz(folder / "cifar10.npz", size=28)
    with pytest.raises(FedveilError, match=r"allowed: \(n, 32, 32, 3\)"):
        load_data("cifar10")
    path = save_archive(folder, {"data_batch_1.bin": records([0])})
    with pytest.warns(UserWarning, match="md5"), pytest.raises(FedveilError, match="data_batch_2"):
        load_data("cifar10")
    path.write_bytes(save_archive(folder, cifar_files()).read_bytes()[:150])
    with pytest.warns(UserWarning, match="md5"), pytest.raises(FedveilError, match="damaged or cut short"):
        load_data("cifar10")
    save_folder(folder)
    (folder / "cifar-10-batches-bin" / "data_batch_3.bin").write_bytes(records([1])[:-1])
    with pytest.raises(FedveilError, match=r"data_batch_3\.bin: 3072 bytes, cut short"):
        load_data("cifar10")
    (folder / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    with pytest.raises(FedveilError, match=r"data_batch_3\.bin: cannot be read \(No such file"):
        load_data("cifar10")


@pytest.mark.parametrize(("name", "size"), [("cifar10", 28), ("mnist", 32), ("fashionmnist", 64)])
def test_their_own_size_only(name: str, size: int) -> None:
    with pytest.raises(FedveilError, match=f"{name}: size is {size}; allowed: "):
        load_data(name, size=size)


@pytest.mark.parametrize(
    ("name", "folder_name", "official"),
    [("mnist", "MNIST", datasets.MNIST), ("fashionmnist", "FashionMNIST", datasets.FashionMNIST)],
)
def test_the_idx_files_are_torchvisions(name: str, folder_name: str, official: type[datasets.MNIST]) -> None:
    source = named[name]
    assert isinstance(source, IdxSource)
    assert [(file.name, file.md5) for file in source.files()] == official.resources
    assert set(source.mirrors) <= set(official.mirrors)
    assert len(source.classes) == len(official.classes)
    assert source.folder == folder_name


def test_mnist_from_idx_files(folder: Path) -> None:
    save_idx(folder)
    with pytest.warns(UserWarning, match="is not the official file") as warned:
        data = load_data("mnist")
    assert [str(warning.message) for warning in warned] == list(data.notes)
    assert len(data.notes) == 4
    assert data.train.shape == (1, 28, 28)
    assert data.train.labels.tolist() == [*range(10), *range(10)]
    assert data.train.pixels[1, 0, 0, :2].tolist() == [784 % 256, 785 % 256]
    assert len(data.test) == 10
    assert len(data.val) == 0


def test_official_idx_files_have_no_notes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_idx(folder, "FashionMNIST")
    md5s = dict(datasets.FashionMNIST.resources)
    monkeypatch.setattr("fedveil.fl.data.torchvision.file_md5", lambda path: md5s[path.name])
    assert load_data("fashionmnist").notes == ()


def test_a_missing_idx_file_is_named(folder: Path) -> None:
    (save_idx(folder) / "train-labels-idx1-ubyte.gz").unlink()
    with (
        pytest.warns(UserWarning, match="md5"),
        pytest.raises(FedveilError, match=r"train-labels-idx1-ubyte\.gz: there is no such file; needed: "),
    ):
        load_data("mnist")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx((3,), b"\x01\x02\x03")[:-6], "damaged or cut short"),
        (b"plain", "damaged or cut short"),
        (gzip.compress(b"\x00\x00\x0d\x01\x00\x00\x00\x00"), "no IDX file of bytes"),
        (gzip.compress(b"\x00"), "no IDX file of bytes"),
        (idx((3,), b"\x01\x02"), r"2 bytes of data for the shape \(3,\)"),
        (gzip.compress(b"\x00\x00\x08\x02\x00\x00\x00\x01"), "the file is damaged"),
    ],
    # Compressed bytes hold the time: two processes would call these tests by different names.
    ids=["cut short", "not compressed", "type", "no header", "shape", "no shape"],
)
def test_damaged_idx(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.gz").write_bytes(content)
    with pytest.raises(FedveilError, match=message):
        read_idx(tmp_path / "x.gz")


def test_idx_by_hand(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(idx((2, 3), b"\x01\x02\x03\x04\x05\x06"))
    assert read_idx(tmp_path / "x.gz").tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("name", ["cifar10", "mnist", "fashionmnist"])
def test_no_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr("fedveil.fl.data.download.retrieve", unreachable)
    with pytest.raises(FedveilError, match=f"{name}: .* could not be downloaded .*no route.* by hand to "):
        load_data(name)


def test_what_stands_in_for_a_download_that_fails_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr("fedveil.fl.data.download.retrieve", unreachable)
    own = folder / "cifar10_subset.npz"
    own.write_bytes(b"")
    with pytest.raises(FedveilError, match=f"by hand to .*; experiments take what is here: {own}$"):
        fetch("cifar10")
    with pytest.raises(SettingError, match=r"allowed: 32$"):
        fetch("cifar10", size=28)


def test_a_good_copy_in_a_search_folder_is_not_downloaded_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr("fedveil.fl.data.download.retrieve", unreachable)
    raw = save_idx(folder)
    mnist = named["mnist"]
    assert isinstance(mnist, IdxSource)
    parts = ("train_images", "train_labels", "test_images", "test_labels")
    md5s = {part: replace(file, md5=file_md5(raw / file.name)) for part, file in zip(parts, mnist.files(), strict=True)}
    monkeypatch.setattr("fedveil.fl.data._source", {"mnist": replace(mnist, **md5s), "cifar10": named["cifar10"]}.get)
    assert fetch("mnist") == raw
    (raw / "train-labels-idx1-ubyte.gz").write_bytes(b"short")
    with pytest.raises(FedveilError, match="no route"):
        fetch("mnist")

    save_folder(folder)  # records are there, but not all
    with pytest.raises(FedveilError, match="no route"):
        fetch("cifar10")
    archive = save_archive(folder, cifar_files())
    monkeypatch.setattr("fedveil.fl.data.torchvision._CIFAR_MD5", file_md5(archive))
    assert fetch("cifar10") == archive
    monkeypatch.setattr("fedveil.fl.data.torchvision._CIFAR_BATCH", 2)
    assert fetch("cifar10") == folder / "cifar-10-batches-bin"


def test_fetched_mnist_is_then_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = save_idx(tmp_path / "remote")

    def copy(url: str, target: Path, filename: str, md5: str) -> None:
        (target / filename).write_bytes((remote / filename).read_bytes())

    monkeypatch.setattr("fedveil.fl.data.download.retrieve", copy)
    raw = fetch("mnist")
    assert raw == Path.cwd() / "data" / "cache" / "MNIST" / "raw"
    assert sorted(path.name for path in raw.iterdir()) == sorted(IDX)
    assert named["mnist"].entry().found == (raw,)
