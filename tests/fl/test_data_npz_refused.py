"""Arrays that make no data set, and paths and names that lead to none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from npz_files import saved

from fedveil.fl.data import load_data
from fedveil.fl.data.npz import read_npz
from fedveil.fl.errors import FedveilError


def test_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDVEIL_DATA", str(tmp_path))
    with pytest.raises(FedveilError, match=r"there is no 'absent\.npz' in .*" + str(tmp_path)):
        load_data("npz:absent.npz")
    with pytest.raises(FedveilError, match=r"there is no '/nowhere/absent\.npz'"):
        load_data("npz:/nowhere/absent.npz")


@pytest.mark.parametrize("name", ["x" * 300, "/" + "x" * 300, "~nobody-of-this-name/x.npz"])
def test_a_path_that_cannot_be(name: str) -> None:
    for prefix in ("npz", "folder"):
        with pytest.raises(FedveilError, match="this path cannot be looked up"):
            load_data(f"{prefix}:{name}")
    with pytest.raises(FedveilError, match="too long"):
        read_npz(Path("x" * 300))


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
