from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedveil.fl.data import fetch, load_data
from fedveil.fl.errors import FedveilError


def paint(path: Path, value: int | tuple[int, int, int], size: tuple[int, int] = (6, 6)) -> None:
    """Write an image of one colour; ``size`` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L" if isinstance(value, int) else "RGB", size, value).save(path)


def test_ready_made_splits(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 1)):
        for label, name in enumerate(("cat", "dog")):
            for number in range(count):
                paint(tmp_path / split / name / f"{number}.png", 100 * label + number)
    data = load_data(f"folder:{tmp_path}", size=4)
    assert data.classes == ("cat", "dog")
    assert data.train.shape == (1, 4, 4)
    assert data.train.pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 100, 101, 102]
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test.labels.tolist() == [0, 1]
    assert len(data.val) == 0
    assert not data.published


def test_val_is_read_if_it_is_there(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            paint(tmp_path / split / name / "0.png", 1)
    assert len(load_data(f"folder:{tmp_path}").val) == 2


def test_a_split_is_drawn_within_each_class(tmp_path: Path) -> None:
    for label, (name, count) in enumerate((("a", 20), ("b", 10))):
        for number in range(count):
            paint(tmp_path / name / f"{number:02}.png", 100 * label + number)
    data, again, other = (load_data(f"folder:{tmp_path}", size=2, seed=seed) for seed in (0, 0, 1))
    counts = [torch.bincount(part.labels).tolist() for part in (data.train, data.val, data.test)]
    assert counts == [[14, 7], [2, 1], [4, 2]]
    values = torch.cat([part.pixels[:, 0, 0, 0] for part in (data.train, data.val, data.test)])
    assert sorted(values.tolist()) == [*range(20), *range(100, 110)]
    assert torch.equal(data.train.pixels, again.train.pixels)
    assert not torch.equal(data.train.pixels, other.train.pixels)


def test_two_images_a_class_are_enough(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for number in range(2):
            paint(tmp_path / name / f"{number}.png", number)
    data = load_data(f"folder:{tmp_path}", size=2)
    assert (len(data.train), len(data.val), len(data.test)) == (2, 0, 2)


def test_one_colour_image_makes_all_colour(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for number in range(2):
            paint(tmp_path / name / f"{number}.png", 50)
    paint(tmp_path / "b" / "2.png", (1, 2, 3))
    data = load_data(f"folder:{tmp_path}")
    assert data.train.shape == (3, 64, 64)
    seen = torch.cat([data.train.pixels, data.test.pixels])[:, :, 0, 0].tolist()
    assert sorted(seen) == [[1, 2, 3]] + [[50, 50, 50]] * 4


def test_the_centred_square_is_kept(tmp_path: Path) -> None:
    wide = np.zeros((4, 8), np.uint8)
    wide[:, 2:6] = 200
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.fromarray(wide).save(tmp_path / name / f"{number}.png")
    assert (load_data(f"folder:{tmp_path}", size=4).train.pixels == 200).all()


def test_a_relative_path_is_looked_up_in_the_search_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        for number in range(2):
            paint(tmp_path / "scans" / name / f"{number}.PNG", number)
    monkeypatch.setenv("FEDVEIL_DATA", str(tmp_path))
    (tmp_path / "scans" / "a" / ".hidden.png").write_bytes(b"")
    (tmp_path / "scans" / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "scans" / ".git").mkdir()
    data = load_data("folder:scans")
    assert len(data.train) == 2
    assert data.name == "folder:scans"


def test_errors_are_one_line_and_name_the_place(tmp_path: Path) -> None:
    name = f"folder:{tmp_path}"

    def refuses(message: str, **options: int) -> None:
        with pytest.raises(FedveilError, match=message) as caught:
            load_data(name, **options)
        assert "\n" not in str(caught.value)

    refuses("0 class folders; allowed: at least two")
    paint(tmp_path / "a" / "0.png", 1)
    paint(tmp_path / "a" / "1.png", 1)
    (tmp_path / "b").mkdir()
    refuses("b: 0 image files; allowed: 2 and more")
    paint(tmp_path / "b" / "0.png", 1)
    refuses("b: 1 image files; allowed: 2 and more")
    (tmp_path / "b" / "1.png").write_bytes(b"no image")
    refuses(r"1\.png: this image cannot be read")
    whole = (tmp_path / "b" / "0.png").read_bytes()
    (tmp_path / "b" / "1.png").write_bytes(whole[:45])
    refuses(r"1\.png: this image cannot be read, or it is damaged")
    Image.fromarray(np.full((4, 4), 300, np.uint16)).save(tmp_path / "b" / "1.png")
    refuses(r"1\.png: the pixels are of Pillow's mode I;16; allowed: 8 bits a channel")
    paint(tmp_path / "b" / "1.png", 1)
    refuses("size is 0", size=0)
    assert len(load_data(name).train) == 2


def test_errors_of_ready_made_splits(tmp_path: Path) -> None:
    for name in ("a", "b"):
        paint(tmp_path / "train" / name / "0.png", 1)
    with pytest.raises(FedveilError, match="there is train/ but no test/"):
        load_data(f"folder:{tmp_path}")
    for name in ("a", "c"):
        paint(tmp_path / "test" / name / "0.png", 1)
    with pytest.raises(FedveilError, match="c: train has no such class; allowed: a, b"):
        load_data(f"folder:{tmp_path}")


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"")
    with pytest.raises(FedveilError, match=r"this is not a folder; for an archive of arrays use npz:"):
        load_data(f"folder:{tmp_path / 'x.npz'}")
    with pytest.raises(FedveilError, match="nothing to download"):
        fetch(f"folder:{tmp_path}")
