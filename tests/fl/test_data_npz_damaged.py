"""Archives that are damaged, cut short or made to run code."""

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from npz_files import good, saved

from fedveil.fl.data import load_data
from fedveil.fl.errors import FedveilError


@pytest.mark.parametrize("keep", [10, 0.5, 0.99])
def test_truncated(tmp_path: Path, keep: float) -> None:
    name = saved(tmp_path)
    path = tmp_path / "mine.npz"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep > 1 else keep * len(content))])
    with pytest.raises(FedveilError, match="damaged or cut short"):
        load_data(name)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    name = saved(tmp_path)
    path = tmp_path / "mine.npz"
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    with pytest.raises(FedveilError, match="damaged"):
        load_data(name)


def member(array: Any) -> bytes:
    """Return an array as the .npy file that an archive holds."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def with_header(text: str) -> bytes:
    """Return a .npy file of two bytes with this header."""
    header = text.encode("latin1").ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0\0"


GOOD_MEMBER = member(good()["train_images"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (6, 4, 5"), "is damaged or cut short"),
        (with_header("{'descr': '|u1', 'shape': (6,)}"), "is damaged or cut short"),
        (with_header("{'descr': '|u1' 'fortran_order': ] False"), "is damaged or cut short"),
        (with_header("'" + "''" * 3 + "\\"), "is damaged or cut short"),
        (with_header("{'descr': ('|u1',), 'fortran_order': False, 'shape': (2,)}"), "is damaged or cut short"),
        (
            with_header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({2**62},)}}"),
            "is damaged, or too large for this machine",
        ),
        (with_header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({2**90},)}}"), "is damaged or cut short"),
        (with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (-3,)}"), "is damaged or cut short"),
        (with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (3,)}"), "is damaged or cut short"),
        (GOOD_MEMBER[:60], "is damaged or cut short"),
        (GOOD_MEMBER[:-1], "is damaged or cut short"),
        (b"\x93NUMPY\x01\x00" + struct.pack("<H", 20_000) + b"{" * 20_000, "is damaged or cut short"),
        (b"\x93NUMPY\x09\x00" + GOOD_MEMBER[8:], "is damaged or cut short"),
    ],
)
def test_a_damaged_member_is_one_clear_line(tmp_path: Path, content: bytes, message: str) -> None:
    name = saved(tmp_path, train_images=None)
    with zipfile.ZipFile(tmp_path / "mine.npz", "a") as archive:
        archive.writestr("train_images.npy", content)
    with pytest.raises(FedveilError) as caught:
        load_data(name)
    assert str(caught.value).startswith(f"{tmp_path / 'mine.npz'}: train_images {message} (")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("offset", "value", "method", "reason"),
    [
        (6, 1, zipfile.ZIP_STORED, "encrypted"),  # the flag of a password
        (None, None, zipfile.ZIP_DEFLATED, ""),
    ],
)
def test_members_that_zipfile_cannot_unpack(
    tmp_path: Path, offset: int | None, value: int | None, method: int, reason: str
) -> None:
    path = tmp_path / "mine.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        for key, array in good().items():
            archive.writestr(f"{key}.npy", member(array))
    content = bytearray(path.read_bytes())
    if offset is None or value is None:
        # Inside the first member's compressed bytes, after its 30 bytes of header and its name.
        start = 30 + len("train_images.npy") + 12
        content[start : start + 30] = bytes(30)
    else:
        content[offset] = content[content.index(b"PK\x01\x02") + offset + 2] = value
    path.write_bytes(content)
    with pytest.raises(FedveilError, match=f"train_images is damaged or cut short .*{reason}") as caught:
        load_data(f"npz:{path}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("position", "value"), [(6, 0xFF), (42, 0xFF), (28, 0xFF)])
def test_a_damaged_directory(tmp_path: Path, position: int, value: int) -> None:
    name = saved(tmp_path)
    path = tmp_path / "mine.npz"
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + position] = value
    path.write_bytes(content)
    with pytest.raises(FedveilError, match="damaged"):
        load_data(name)


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    name = saved(tmp_path, train_labels=np.array([Trap(tmp_path / "sprung")] * 6, dtype=object))
    with pytest.raises(FedveilError, match="train_labels holds pickled objects, which are never loaded"):
        load_data(name)
    assert not (tmp_path / "sprung").exists()


def test_a_bare_pickle_is_not_unpickled(tmp_path: Path) -> None:
    (tmp_path / "mine.npz").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(FedveilError, match=r"this is no \.npz archive"):
        load_data(f"npz:{tmp_path / 'mine.npz'}")
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_as_member_is_not_unpickled(tmp_path: Path) -> None:
    name = saved(tmp_path, train_images=None)
    with zipfile.ZipFile(tmp_path / "mine.npz", "a") as archive:
        archive.writestr("train_images.npy", pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(FedveilError, match="train_images"):
        load_data(name)
    assert not (tmp_path / "sprung").exists()
