import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedveil.fl.data import fetch, load_data
from fedveil.fl.data.npz import read_npz
from fedveil.fl.errors import FedveilError


def good() -> dict[str, Any]:
    """Six training and four test images of 4x5; each pixel holds its own number."""
    return {
        "train_images": np.arange(120, dtype=np.uint8).reshape(6, 4, 5),
        "train_labels": np.array([[0], [1], [2], [0], [1], [2]], np.uint8),
        "test_images": np.arange(80, dtype=np.uint8).reshape(4, 4, 5),
        "test_labels": np.array([0, 1, 2, 0], np.int32),
    }


def saved(folder: Path, **changes: Any) -> str:
    """Write `good` with ``changes`` (None removes a key) and return the data set's name."""
    arrays = {key: value for key, value in {**good(), **changes}.items() if value is not None}
    np.savez(folder / "mine.npz", **arrays)
    return f"npz:{folder / 'mine.npz'}"


def test_only_train_and_test(tmp_path: Path) -> None:
    data = load_data(saved(tmp_path))
    assert data.train.shape == (1, 4, 5)
    assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.train.pixels[1, 0, 2, 3].item() == 20 + 2 * 5 + 3
    assert len(data.val) == 0
    assert data.val.shape == (1, 4, 5)
    assert data.classes == ("0", "1", "2")
    assert not data.published


def test_colour_val_and_names(tmp_path: Path) -> None:
    pixels = np.arange(6 * 4 * 5 * 3).astype(np.uint8).reshape(6, 4, 5, 3)
    name = saved(
        tmp_path,
        train_images=pixels,
        val_images=pixels[:2],
        val_labels=np.array([1, 2]),
        test_images=pixels[:4],
        label_names=np.array(["a", "b", "c"]),
    )
    data = load_data(name)
    assert data.train.shape == (3, 4, 5)
    assert data.train.pixels[2, 1, 3, 4].item() == pixels[2, 3, 4, 1]
    assert data.val.labels.tolist() == [1, 2]
    assert data.classes == ("a", "b", "c")


def test_writing_to_the_images_does_not_reach_the_file(tmp_path: Path) -> None:
    name = saved(tmp_path)
    path = Path(name.removeprefix("npz:"))
    before = path.read_bytes()
    load_data(name).train.pixels.zero_()
    assert path.read_bytes() == before


def test_the_limit_holds_for_every_split(tmp_path: Path) -> None:
    data = load_data(saved(tmp_path), limit=3)
    assert sorted(data.train.labels.tolist()) == sorted(data.test.labels.tolist()) == [0, 1, 2]


@pytest.mark.filterwarnings("ignore::fedveil.fl.errors.FedveilWarning")
@pytest.mark.parametrize(
    ("fit", "rows"),
    [
        # A picture of 4x5 in 5x5: a black row is put below or above, the four rows are drawn out, or a column is lost.
        ("pad", [1, 1, 1, 1, 0]),
        ("resize", [1, 1, 1, 1, 1]),
        ("crop", [1, 1, 1, 1, 1]),
    ],
)
def test_another_size_is_scaled_to_and_said(tmp_path: Path, fit: Any, rows: list[int]) -> None:
    white = {f"{split}_images": np.full((n, 4, 5), 255, np.uint8) for split, n in (("train", 6), ("test", 4))}
    data = load_data(saved(tmp_path, **white), size=5, fit=fit)
    assert data.train.shape == data.test.shape == (1, 5, 5)
    assert sorted((data.train.pixels[0, 0].float().mean(dim=1) / 255).tolist(), reverse=True) == rows
    where = str(tmp_path / "mine.npz")
    assert data.notes[0] == f"{where}: images of 4x5 px were scaled to 5x5"
    assert data.notes[1].startswith(f"{where}: 10 of 10 pictures are no squares and ")
    assert f"(data.fit: {fit}; " in data.notes[1]


def test_the_files_own_size_is_left_alone(tmp_path: Path) -> None:
    square = {
        f"{split}_images": np.arange(n * 16, dtype=np.uint8).reshape(n, 4, 4)
        for split, n in (("train", 6), ("test", 4))
    }
    data = load_data(saved(tmp_path, **square), size=4)
    assert data.notes == ()
    assert data.train.pixels[1, 0].flatten().tolist() == list(range(16, 32))
    with pytest.raises(FedveilError, match="size is 0; allowed: 1 and above"):
        load_data(saved(tmp_path), size=0)


@pytest.mark.filterwarnings("ignore::fedveil.fl.errors.FedveilWarning")
def test_splits_of_two_sizes_become_one(tmp_path: Path) -> None:
    data = load_data(saved(tmp_path, test_images=np.zeros((4, 8, 8), np.uint8)), size=6)
    assert data.test.shape == data.train.shape == (1, 6, 6)
    assert data.notes[0].endswith("images of 4x5 and 8x8 px were scaled to 6x6")
    assert "6 of 10 pictures" in data.notes[1]


@pytest.mark.parametrize("name", ["mni152", "npz"])
def test_a_fit_that_is_not(tmp_path: Path, name: str) -> None:
    given, fit, message = {
        "mni152": ("mni152", "pad", "mni152: fit is pad; it is for folder: and npz: alone"),
        "npz": (saved(tmp_path), "cut", "fit is cut; allowed: pad, resize, crop"),
    }[name]
    with pytest.raises(FedveilError, match=message):
        load_data(given, fit=fit)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::fedveil.fl.errors.FedveilWarning")
def test_floats_with_channels_first_are_converted_and_said(tmp_path: Path) -> None:
    train = np.zeros((6, 3, 4, 5), np.float32)
    train[2, 1, 3, 4] = 0.2
    data = load_data(saved(tmp_path, train_images=train, test_images=np.ones((4, 3, 4, 5))))
    assert data.train.shape == (3, 4, 5)
    assert data.train.pixels[2, 1, 3, 4].item() == 51
    assert int(data.train.pixels.count_nonzero()) == 1
    assert (data.test.pixels == 255).all()
    assert data.notes == (
        f"{tmp_path / 'mine.npz'}: channels stood first, (n, C, H, W), and were moved to the end",
        f"{tmp_path / 'mine.npz'}: pixels were float32, float64; 0 became 0 and 1 became 255",
    )


@pytest.mark.filterwarnings("ignore::fedveil.fl.errors.FedveilWarning")
@pytest.mark.parametrize(
    ("labels", "done"),
    [
        (np.array([0.0, 1.0, 2.0, 0.0, 1.0, 2.0], np.float32), "were float32, and were taken for whole numbers"),
        (np.array([[0.0], [1.0], [2.0], [0.0], [1.0], [2.0]]), "were float64, and were taken for whole numbers"),
        (np.eye(3)[[0, 1, 2, 0, 1, 2]], "were one-hot rows"),
        (np.eye(3, dtype=bool)[[0, 1, 2, 0, 1, 2]], "were one-hot rows"),
    ],
)
def test_labels_that_are_no_integers_are_converted_and_said(tmp_path: Path, labels: Any, done: str) -> None:
    data = load_data(saved(tmp_path, train_labels=labels))
    assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.notes == (f"{tmp_path / 'mine.npz'}: train_labels {done}",)
    both = load_data(saved(tmp_path, train_labels=labels, val_labels=labels, val_images=good()["train_images"]))
    assert both.val.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert both.notes == (f"{tmp_path / 'mine.npz'}: train_labels, val_labels {done}",)


@pytest.mark.filterwarnings("ignore::fedveil.fl.errors.FedveilWarning")
def test_truth_values_are_two_classes(tmp_path: Path) -> None:
    both = {f"{split}_labels": np.arange(count) % 2 == 1 for split, count in (("train", 6), ("test", 4))}
    data = load_data(saved(tmp_path, **both))
    assert data.train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert data.notes[0].endswith(": train_labels, test_labels were bool, and were taken for whole numbers")


def test_found_by_name_in_a_search_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    monkeypatch.setenv("FEDVEIL_DATA", str(tmp_path))
    assert len(load_data("npz:mine.npz").train) == 6


def test_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDVEIL_DATA", str(tmp_path))
    with pytest.raises(FedveilError, match=r"there is no 'absent\.npz' in .*" + str(tmp_path)):
        load_data("npz:absent.npz")
    with pytest.raises(FedveilError, match=r"there is no '/nowhere/absent\.npz'"):
        load_data("npz:/nowhere/absent.npz")


def test_own_files_are_where_they_are(tmp_path: Path) -> None:
    name = saved(tmp_path)
    assert f"npz:{fetch(name)}" == name
    with pytest.raises(FedveilError, match=r"^npz:/nowhere/absent\.npz: there is no '/nowhere/absent\.npz'$"):
        fetch("npz:/nowhere/absent.npz")


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


@pytest.mark.parametrize("name", ["x" * 300, "/" + "x" * 300, "~nobody-of-this-name/x.npz"])
def test_a_path_that_cannot_be(name: str) -> None:
    for prefix in ("npz", "folder"):
        with pytest.raises(FedveilError, match="this path cannot be looked up"):
            load_data(f"{prefix}:{name}")
    with pytest.raises(FedveilError, match="too long"):
        read_npz(Path("x" * 300))


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"test_labels": None},
            r"test_labels missing; expected train_images, .*; found test_images, train_images, ",
        ),
        ({"val_images": np.zeros((1, 4, 5), np.uint8)}, "val_labels missing"),
        (
            {"train_images": np.zeros((6, 4, 5))},
            "the splits are of float64, uint8; whole numbers and fractions",
        ),
        ({"train_images": np.zeros((6, 4, 5), complex), "test_images": np.zeros((4, 4, 5), complex)}, "complex128"),
        ({"train_images": np.zeros((6, 20), np.uint8)}, r"train_images: the shape is \(6, 20\)"),
        ({"train_images": np.zeros((6, 3, 4, 5), np.uint8)}, "channels stand first in some splits and last in others"),
        ({"train_images": np.zeros((6, 7, 4, 5), np.uint8)}, r"train_images: the shape is \(6, 7, 4, 5\)"),
        ({"train_images": np.zeros((6, 0, 5), np.uint8)}, r"train_images: the shape is \(6, 0, 5\)"),
        ({"test_images": np.zeros((4, 5, 5), np.uint8)}, r"of test is \(1, 5, 5\), of train \(1, 4, 5\)"),
        (
            {"train_labels": np.array([0, 1, 2, 0, 1.5, 2])},
            r"train_labels: 1\.5 is no whole number; allowed: whole numbers from 0, \(n,\) or \(n, 1\), or one-hot rows",
        ),
        ({"test_labels": np.array([0, 1, np.nan, 2])}, "test_labels: nan is no whole number; allowed: "),
        ({"test_labels": np.array([0, 1j, 1, 2])}, "test_labels: the dtype is complex128; allowed: whole numbers"),
        (
            {"train_labels": np.array(["cat", "dog", "elk"] * 2)},
            r"train_labels: the labels are text; number them \(names, numbers = np\.unique\(labels, return_inverse=True\)\)",
        ),
        (
            {"train_labels": np.array([[1, 0, 0], [0, 1, 2]] * 3)},
            r"train_labels: the shape is \(6, 3\), and row 1 is not one-hot; allowed: ",
        ),
        ({"train_labels": np.zeros((6, 2), np.uint8)}, "train_labels: row 0 names 0 classes; one class for each image"),
        (
            {"train_labels": np.array([[1, 0, 0], [0, 1, 1]] * 3, np.uint8)},
            "train_labels: row 1 names 2 classes; .* choose one finding, or make a class of each combination$",
        ),
        ({"train_labels": np.zeros((6, 2, 2), np.uint8)}, r"train_labels: the shape is \(6, 2, 2\); allowed: \(n,\)"),
        ({"train_labels": np.array([0, 1, 2])}, "train has 6 images but 3 labels"),
        ({"train_labels": np.array([0, 1, 2, 0, 1, -1])}, "train_labels: the label -1 is out of range"),
        (
            {"test_labels": np.array([0, 1, 2, 3])},
            "test_labels: the label 3 is out of range; allowed: 0 to 2",
        ),
        ({"train_labels": np.array([0, 1, 3, 0, 1, 3])}, "class 2 has no training image"),
        ({"train_labels": np.array([0, 1, 2**62, 0, 1, 2])}, "class 3 has no training image"),
        (
            {"train_labels": np.array([1, 2, 3] * 2)},
            "class 0 has no training image; labels seem to count from 1: subtract",
        ),
        (
            {
                "label_names": np.array(["a", "b", "c"]),
                "train_labels": np.array([1, 2, 3] * 2),
            },
            "the label 3 is out of range; allowed: 0 to 2; labels seem to count from 1: subtract 1$",
        ),
        ({"train_labels": np.zeros(6, int), "test_labels": np.zeros(4, int)}, "one class only"),
        ({"label_names": np.array(["a", "b"])}, "train_labels: the label 2 is out of range; allowed: 0 to 1"),
        ({"label_names": np.array(["a", "b", "c", "d"])}, r"class 3 \(d\) has no training image"),
        ({"label_names": np.array([1, 2, 3])}, "label_names is int64"),
        ({"test_images": np.zeros((0, 4, 5), np.uint8), "test_labels": np.zeros(0, int)}, "test is empty"),
    ],
)
def test_a_malformed_file_is_one_clear_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FedveilError, match=message) as caught:
        load_data(saved(tmp_path, **changes))
    assert str(tmp_path / "mine.npz") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mnits", "npz", "npz:", "zip:x"])
def test_an_unknown_name_lists_the_known(name: str) -> None:
    with pytest.raises(FedveilError, match=r"unknown data set .*cifar10, .*folder:PATH, .*mni152, .*npz:PATH"):
        load_data(name)


def test_images_are_uint8_at_rest(tmp_path: Path) -> None:
    images = load_data(saved(tmp_path)).train
    assert images.pixels.dtype == torch.uint8
    assert images.pixels.is_contiguous()
