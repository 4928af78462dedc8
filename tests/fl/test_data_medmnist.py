from dataclasses import replace
from pathlib import Path
from typing import Any

import medmnist as official_package
import numpy as np
import pytest

import fedveil.fl.data.medmnist as source
from fedveil.fl.data import available, fetch, load_data
from fedveil.fl.data.download import file_md5
from fedveil.fl.errors import FedveilError


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


def save(path: Path, *, size: int = 28, colour: bool = False, classes: int = 2, **changes: Any) -> None:
    shape = (size, size, 3) if colour else (size, size)
    arrays: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.full((classes, *shape), 7, np.uint8)
        arrays[f"{split}_labels"] = np.arange(classes, dtype=np.uint8)[:, None]
    np.savez(path, **{**arrays, **changes})


def make_official(path: Path, flag: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the file at ``path`` have the md5 that is expected."""
    release = replace(source.release(flag), md5s={**source.release(flag).md5s, size: file_md5(path)})
    monkeypatch.setattr(source, "release", lambda _: release)


def test_flags_are_the_2d_ones_of_medmnist() -> None:
    assert list(source.FLAGS) == sorted(flag for flag in official_package.INFO if not flag.endswith("3d"))


@pytest.mark.parametrize("flag", source.FLAGS)
def test_the_table_agrees_with_medmnist(flag: str) -> None:
    info, release = official_package.INFO[flag], source.release(flag)
    assert release.channels == info["n_channels"]
    assert list(release.classes) == list(info["label"].values())
    assert [release.md5s[size] for size in (28, 64, 128, 224)] == [
        info[key] for key in ("MD5", "MD5_64", "MD5_128", "MD5_224")
    ]
    assert release.urls[128] == info["url_128"]
    assert release.multi_label == (flag == "chestmnist")


def test_an_official_file_has_no_notes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(folder / "breastmnist.npz")
    make_official(folder / "breastmnist.npz", "breastmnist", 28, monkeypatch)
    data = load_data("breastmnist")
    assert data.notes == ()
    assert data.published
    assert data.classes == ("malignant", "normal, benign")
    assert data.train.labels.tolist() == [0, 1]
    assert len(data.val) == 2


def test_a_file_that_differs_is_used_with_a_warning_and_a_note(folder: Path) -> None:
    save(folder / "breastmnist.npz")
    with pytest.warns(UserWarning, match="not the official file: its md5 is"):
        data = load_data("breastmnist")
    assert len(data.notes) == 1
    assert "750601b1f35ba3300ea97c75c52ff8f6" in data.notes[0]


def test_sizes_are_files_of_their_own(folder: Path) -> None:
    save(folder / "retinamnist_64.npz", size=64, colour=True, classes=5)
    with pytest.warns(UserWarning, match="retinamnist_64"):
        assert load_data("retinamnist", size=64).train.shape == (3, 64, 64)
    with pytest.raises(FedveilError, match="size is 32; allowed: 28, 64, 128, 224"):
        load_data("retinamnist", size=32)


@pytest.mark.parametrize(("size", "colour"), [(64, False), (28, True)])
def test_a_file_of_another_shape_is_refused(folder: Path, size: int, colour: bool) -> None:
    save(folder / "breastmnist.npz", size=size, colour=colour)
    with pytest.raises(FedveilError, match=r"train_images: the shape is .*; allowed: \('n', 28, 28\)"):
        load_data("breastmnist")


def test_a_label_beyond_the_official_classes_is_refused(folder: Path) -> None:
    save(folder / "breastmnist.npz", classes=3)
    with (
        pytest.warns(UserWarning, match="md5"),
        pytest.raises(FedveilError, match="the label 2 is out of range; allowed: 0 to 1"),
    ):
        load_data("breastmnist")


def test_chestmnist_is_reduced_to_any_finding(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.zeros((3, 14), np.uint8)
    labels[1, 4] = labels[2, 0] = labels[2, 13] = 1
    images = np.zeros((3, 28, 28), np.uint8)
    changes: dict[str, Any] = {f"{split}_labels": labels for split in ("train", "val", "test")}
    changes |= {f"{split}_images": images for split in ("train", "val", "test")}
    save(folder / "chestmnist.npz", **changes)
    make_official(folder / "chestmnist.npz", "chestmnist", 28, monkeypatch)
    data = load_data("chestmnist")
    assert data.train.labels.tolist() == data.val.labels.tolist() == data.test.labels.tolist() == [0, 1, 1]
    assert data.classes == ("no finding", "any finding")
    assert data.notes == ("chestmnist: 14 findings were reduced to no finding / any finding",)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((3, 13), np.uint8), r"train_labels is uint8 \(3, 13\); allowed: integers \(n, 14\)"),
        (np.full((3, 14), 2, np.uint8), "a label is out of range; allowed: 0 and 1"),
    ],
)
def test_malformed_findings(folder: Path, labels: Any, message: str) -> None:
    save(folder / "chestmnist.npz", train_images=np.zeros((3, 28, 28), np.uint8), train_labels=labels)
    with pytest.warns(UserWarning, match="md5"), pytest.raises(FedveilError, match=message):
        load_data("chestmnist")


def test_without_a_network_there_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(url: str, *_: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("fedveil.fl.data.download.retrieve", unreachable)
    for attempt in (load_data, fetch):
        with pytest.raises(FedveilError) as caught:
            attempt("pathmnist", size=64)
        message = str(caught.value)
        assert message.startswith(f"pathmnist: pathmnist_64.npz was looked for in {folder}")
        assert "zenodo.org" in message
        assert "Name or service not known" in message
        assert f"by hand to {Path.cwd() / 'data' / 'cache'}" in message
        assert "FEDVEIL_DATA" in message
        assert "\n" not in message


def test_a_missing_file_is_downloaded_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "remote.npz")
    make_official(tmp_path / "remote.npz", "breastmnist", 28, monkeypatch)

    def copy(url: str, target: Path, filename: str, md5: str) -> None:
        assert "breastmnist.npz" in url
        (target / filename).write_bytes((tmp_path / "remote.npz").read_bytes())

    monkeypatch.setattr("fedveil.fl.data.download.retrieve", copy)
    assert load_data("breastmnist").notes == ()
    assert fetch("breastmnist") == Path.cwd() / "data" / "cache" / "breastmnist.npz"


def test_a_good_file_in_a_search_folder_is_not_downloaded_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(url: str, target: Path, filename: str, md5: str) -> None:
        (target / filename).write_bytes(content)

    monkeypatch.setattr("fedveil.fl.data.download.retrieve", copy)
    save(folder / "breastmnist.npz")
    content = (folder / "breastmnist.npz").read_bytes()
    make_official(folder / "breastmnist.npz", "breastmnist", 28, monkeypatch)
    assert fetch("breastmnist") == folder / "breastmnist.npz"
    assert not (Path.cwd() / "data").exists()
    (folder / "breastmnist.npz").write_bytes(content[:-1])
    assert fetch("breastmnist") == Path.cwd() / "data" / "cache" / "breastmnist.npz"


def test_the_list_says_what_is_here(folder: Path) -> None:
    save(folder / "breastmnist_128.npz", size=128)
    save(folder / "own.npz")
    entries = {entry.name: entry for entry in available()}
    assert set(entries) == {*source.FLAGS, "mni152", "cifar10", "mnist", "fashionmnist", "npz:own.npz"}
    breast = entries["breastmnist"]
    assert (breast.channels, breast.classes, breast.default_size, breast.size_text()) == (
        1,
        2,
        28,
        "28, 64, 128, 224",
    )
    assert breast.present
    assert breast.found == (folder / "breastmnist_128.npz",)
    assert not entries["pathmnist"].present
    assert entries["chestmnist"].classes == 2
    assert entries["mni152"].present
    assert entries["mni152"].size_text() == "28 to 64"
    assert entries["npz:own.npz"].size_text() == "as in the file"
