"""Files that are made to hurt whoever reads them: to hang, to run a program, to fill the memory."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import signal
import socket
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from fedveil.fl import memory
from fedveil.fl.data import load_data
from fedveil.fl.data.npz import read_npz
from fedveil.fl.data.torchvision import read_idx
from fedveil.fl.errors import FedveilError

MIB = 2**20
HANG = 20
"""Seconds after which something that has to end at once is taken to hang."""


class Hung(BaseException):
    """No library takes it for an error of its own."""


@contextmanager
def ends() -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(HANG)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refusal(load: Callable[[], object]) -> str:
    with ends(), pytest.raises(FedveilError) as caught:
        load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Two classes of three images; ``a/x.png`` is free for something else."""
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (6, 6), number).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


PLANTS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": bind,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link to a pipe": lambda path: (os.mkfifo(path.with_name("pipe")), path.symlink_to("pipe")),
    "dangling link": lambda path: path.symlink_to("nothing"),
    "link to itself": lambda path: path.symlink_to(path),
    "folder": Path.mkdir,
}


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
def test_only_plain_files_are_read_as_images(
    plant: Callable[[Path], object], classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(classes)  # a socket's path is short
    plant(Path("a", "x.png"))
    said = refusal(lambda: load_data(f"folder:{classes}"))
    assert said.startswith(f"{classes / 'a' / 'x.png'}: ")
    assert "allowed: plain files" in said


def test_a_link_to_an_image_is_an_image(classes: Path) -> None:
    (classes / "a" / "x.png").symlink_to(classes / "b" / "0.png")
    data = load_data(f"folder:{classes}")
    assert len(data.train) + len(data.val) + len(data.test) == 7


def test_no_file_runs_a_program(classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands an EPS, whatever its name, to Ghostscript, which is a programming language."""
    marker = tmp_path / "ran"
    gs = tmp_path / "bin" / "gs"
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\ntouch {marker}\nexit 1\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gs.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    assert shutil.which("gs") == str(gs)
    (classes / "a" / "x.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 6\n%%EndComments\nshowpage\n%%EOF\n"
    )
    said = refusal(lambda: load_data(f"folder:{classes}"))
    assert not marker.exists()
    assert "allowed: BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP" in said


def test_an_image_of_too_many_pixels_is_refused_by_its_head(
    classes: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (10, 11)).save(classes / "a" / "x.png")  # Pillow itself warns of it and refuses twice as many
    assert "110 pixels" in refusal(lambda: load_data(f"folder:{classes}"))
    assert not recwarn.list


def test_a_damaged_image_is_one_line_whatever_pillow_raises(classes: Path) -> None:
    formats = {"PNG": "png", "JPEG": "jpg", "GIF": "gif", "TIFF": "tif", "WEBP": "webp", "BMP": "bmp", "PPM": "ppm"}
    stream = np.random.default_rng(0)
    said: list[str] = []
    for kind, ending in formats.items():
        whole = io.BytesIO()
        Image.fromarray(stream.integers(0, 256, (12, 12, 3), np.uint8)).save(whole, kind)
        for _ in range(60):
            content = np.frombuffer(whole.getvalue(), np.uint8).copy()
            content[stream.integers(0, min(len(content), 200), 4)] = stream.integers(0, 256, 4)
            file = classes / "a" / f"x.{ending}"
            file.write_bytes(content[: stream.integers(1, len(content) + 1)].tobytes())
            said += [str(error) for error in _refusals(lambda: load_data(f"folder:{classes}", size=4))]
        file.unlink()
    assert len(said) > 100
    assert all(line.startswith(f"{classes / 'a' / 'x'}.") and "\n" not in line for line in said)


def _refusals(load: Callable[[], object]) -> list[FedveilError]:
    try:
        with ends():
            load()
    except FedveilError as error:
        return [error]
    return []


def test_a_text_chunk_that_inflates_is_one_line(classes: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("comment", "x" * (2 * MIB), zip=True)
    Image.new("L", (6, 6)).save(classes / "a" / "x.png", pnginfo=info)
    assert refusal(lambda: load_data(f"folder:{classes}")).startswith(str(classes / "a" / "x.png"))


def test_images_that_do_not_go_into_the_memory(classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 100 * MIB)
    said = refusal(lambda: load_data(f"folder:{classes}", size=100_000))
    assert said.startswith(f"folder:{classes}: reading 6 images of 100000x100000 px takes")


def bomb(path: Path, *, method: int = zipfile.ZIP_DEFLATED, size: int = 64 * MIB) -> Path:
    """An archive of a few KiB with images of ``size`` bytes."""
    small = {"train_labels": np.zeros(6, np.uint8), "test_labels": np.zeros(6, np.uint8)}
    small["test_images"] = np.zeros((6, 4, 4), np.uint8)
    with zipfile.ZipFile(path, "w", method) as archive:
        for key, array in {**small, "train_images": np.zeros((size // 16, 4, 4), np.uint8)}.items():
            whole = io.BytesIO()
            np.save(whole, array)
            archive.writestr(f"{key}.npy", whole.getvalue())
    return path


def test_a_zip_bomb_is_refused_before_it_is_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = bomb(tmp_path / "x.npz")
    assert file.stat().st_size < MIB // 8
    assert len(read_npz(file).train.pixels) == 4 * MIB
    monkeypatch.setattr(memory, "free_memory", lambda: 100 * MIB)
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", lambda *_: pytest.fail("it is inflated"))
    said = refusal(lambda: read_npz(file))
    assert said.startswith(f"{file}: reading train_images, train_labels, test_images, test_labels takes 0.1")


def test_what_nobody_reads_of_an_archive_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = bomb(tmp_path / "x.npz", size=1600)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("more.npy", bytes(64 * MIB))
    monkeypatch.setattr(memory, "free_memory", lambda: 10 * MIB)
    assert len(read_npz(file).train.pixels) == 100


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_numpy_does_not_write_inflate_without_a_bound(method: int, tmp_path: Path) -> None:
    said = refusal(lambda: read_npz(bomb(tmp_path / "x.npz", method=method, size=1600)))
    assert "allowed: stored or deflated, as np.savez and np.savez_compressed write" in said


def test_a_method_that_nobody_has(tmp_path: Path) -> None:
    file = bomb(tmp_path / "x.npz", size=1600)
    content = bytearray(file.read_bytes())
    content[8] = content[content.index(b"PK\x01\x02") + 10] = 99
    file.write_bytes(content)
    assert "train_labels.npy is packed by method 99" in refusal(lambda: read_npz(file))


def test_an_archive_is_a_plain_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.npz")
    assert "allowed: plain files" in refusal(lambda: load_data(f"npz:{tmp_path / 'x.npz'}"))
    assert "allowed: plain files" in refusal(lambda: load_data("npz:/dev/zero"))


def idx(path: Path, shape: tuple[int, ...], data: bytes) -> Path:
    path.write_bytes(gzip.compress(b"\0\0\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + data))
    return path


def test_an_idx_file_is_inflated_as_far_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 100 * MIB)
    long = idx(tmp_path / "long.gz", (2, 3), bytes(64 * MIB))
    monkeypatch.setattr(gzip, "decompress", lambda _: pytest.fail("it is inflated whole"))
    assert "more than 6 bytes of data for the shape (2, 3)" in refusal(lambda: read_idx(long))
    large = idx(tmp_path / "large.gz", (2**20, 28, 28), bytes(10))
    assert refusal(lambda: read_idx(large)).startswith(f"{large}: the shape (1048576, 28, 28) takes 0.8 GiB of memory")
    pipe = tmp_path / "pipe.gz"
    os.mkfifo(pipe)
    assert "allowed: plain files" in refusal(lambda: read_idx(pipe))


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDVEIL_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_files_of_cifar_are_plain_and_of_a_size(searched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = searched / "cifar-10-batches-bin"
    folder.mkdir()
    os.mkfifo(folder / "data_batch_1.bin")
    assert "allowed: plain files" in refusal(lambda: load_data("cifar10"))
    (folder / "data_batch_1.bin").unlink()
    with (folder / "data_batch_1.bin").open("wb") as file:
        file.truncate(64 * 2**30)  # takes no room on the disk
    monkeypatch.setattr(memory, "free_memory", lambda: 100 * MIB)
    assert refusal(lambda: load_data("cifar10")).startswith(f"{folder / 'data_batch_1.bin'} takes 64.0 GiB")


def test_the_archive_of_cifar_is_plain_and_its_members_of_a_size(
    searched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = searched / "cifar-10-binary.tar.gz"
    os.mkfifo(archive)
    assert "allowed: plain files" in refusal(lambda: load_data("cifar10"))
    archive.unlink()
    with tarfile.open(archive, "w:gz") as written:
        member = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        member.size = 64 * MIB
        written.addfile(member, io.BytesIO(bytes(member.size)))
    monkeypatch.setattr(memory, "free_memory", lambda: 10 * MIB)
    assert refusal(lambda: load_data("cifar10")).startswith(f"{archive}/data_batch_1.bin takes 0.1 GiB")
