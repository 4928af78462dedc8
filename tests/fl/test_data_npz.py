"""Arrays that make a data set: as they are, scaled, and converted with a note."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from npz_files import good, saved

from fedveil.fl.data import fetch, load_data
from fedveil.fl.errors import FedveilError


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


def test_own_files_are_where_they_are(tmp_path: Path) -> None:
    name = saved(tmp_path)
    assert f"npz:{fetch(name)}" == name
    with pytest.raises(FedveilError, match=r"^npz:/nowhere/absent\.npz: there is no '/nowhere/absent\.npz'$"):
        fetch("npz:/nowhere/absent.npz")


def test_images_are_uint8_at_rest(tmp_path: Path) -> None:
    images = load_data(saved(tmp_path)).train
    assert images.pixels.dtype == torch.uint8
    assert images.pixels.is_contiguous()
