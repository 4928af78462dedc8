import re
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedveil.fl.data import fetch, folder, load_data, pictures
from fedveil.fl.errors import FedveilError, FedveilWarning


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


@pytest.mark.filterwarnings("ignore::fedveil.fl.errors.FedveilWarning")
@pytest.mark.parametrize(
    ("fit", "square"),
    [
        # Half the width is kept of a picture that is drawn out; of a padded one the bright square is 2 px a side.
        ("pad", [[0, 0, 0, 0], [0, 200, 200, 0], [0, 200, 200, 0], [0, 0, 0, 0]]),
        ("resize", [[0, 200, 200, 0]] * 4),
        ("crop", [[200] * 4] * 4),
    ],
)
def test_a_wide_picture_becomes_a_square(tmp_path: Path, fit: Any, square: list[list[int]]) -> None:
    wide = np.zeros((40, 80), np.uint8)
    wide[:, 20:60] = 200
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.fromarray(wide).save(tmp_path / name / f"{number}.png")
    paint(tmp_path / "b" / "2.png", 1)
    data = load_data(f"folder:{tmp_path}", size=4, fit=fit)
    seen = torch.cat([data.train.pixels, data.test.pixels])[:, 0]
    wide_ones = seen[seen.amax(dim=(1, 2)) > 1]
    # Scaling blurs an edge over the pixels beside it.
    assert ((wide_ones - torch.tensor(square)).abs().float().mean(dim=(1, 2)) < 30).all()
    assert len(wide_ones) == 4
    scaled, note = data.notes
    assert scaled.endswith(" px a side were scaled to 4x4 (data.size)")
    assert note.startswith(f"folder:{tmp_path}: 4 of 5 pictures are no squares and ")
    assert f"(data.fit: {fit}; " in note


def test_nothing_is_cropped_unless_it_is_asked_for(tmp_path: Path) -> None:
    bright_ends = np.zeros((10, 60), np.uint8)
    bright_ends[:, :10] = bright_ends[:, -10:] = 255
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.fromarray(bright_ends).save(tmp_path / name / f"{number}.png")
    with pytest.warns(FedveilWarning, match="4 of 4 pictures are no squares and were padded with black"):
        data = load_data(f"folder:{tmp_path}", size=60)
    assert (data.train.pixels[0, 0, 25:35] == torch.tensor(bright_ends)).all()
    assert int(data.train.pixels[0].count_nonzero()) == 10 * 20


@pytest.mark.filterwarnings("ignore::fedveil.fl.errors.FedveilWarning")
@pytest.mark.parametrize(
    ("values", "kind", "shown"),
    [
        ([1000, 3000, 2000, 1500], np.uint16, [0, 255, 128, 64]),
        ([0, 255, 100, 7], np.uint16, [0, 255, 100, 7]),
        ([0.0, 0.5, 0.25, 0.75], np.float32, [0, 128, 64, 191]),
        ([-1000.0, 1000.0, 0.0, 0.5], np.float32, [0, 255, 128, 128]),
    ],
)
def test_pictures_of_more_than_8_bits_share_one_range(
    tmp_path: Path, values: list[float], kind: Any, shown: list[int]
) -> None:
    ending = "png" if kind is np.uint16 else "tif"
    for number, value in enumerate(values):
        folder = tmp_path / "ab"[number % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 4), value, kind)).save(folder / f"{number}.{ending}")
    data = load_data(f"folder:{tmp_path}", size=4)
    assert data.train.shape == (1, 4, 4)
    assert sorted(torch.cat([data.train.pixels, data.test.pixels])[:, 0, 0, 0].tolist()) == sorted(shown)
    (note,) = data.notes
    assert note.startswith(f"folder:{tmp_path}: pixels were of more than 8 bits; ")


def test_a_large_jpeg_is_read_as_if_by_hand(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(
        (800, 800), Image.Resampling.BICUBIC
    )
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(2):
            coarse.save(tmp_path / name / f"{number}.jpg", quality=95)
    pixels = load_data(f"folder:{tmp_path}", size=32).train.pixels[0].permute(1, 2, 0).float()
    slow = np.asarray(Image.open(tmp_path / "a" / "0.jpg").resize((32, 32), Image.Resampling.BILINEAR), np.float32)
    # It is decoded at an eighth of its size, which skips fine detail that the other way averages.
    assert (pixels - torch.tensor(slow)).abs().mean() < 3


def test_a_large_folder_is_read_once_for_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        for number in range(2):
            paint(tmp_path / "scans" / name / f"{number}.png", 10 * number + 5, size=(6, 8))
    kept = tmp_path / "data" / "cache"

    def load() -> torch.Tensor:
        pictures.read_pictures.cache_clear()
        load_data("mni152", limit=10)  # so that the process itself keeps nothing of the folder
        with pytest.warns(FedveilWarning, match="4 of 4 pictures"):
            return folder.FolderSource("scans").load(size=8, seed=0).train.pixels

    small = load()
    assert not kept.exists()
    monkeypatch.setattr(pictures, "KEPT", 1)
    assert torch.equal(load(), small)
    (entry,) = kept.iterdir()
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    monkeypatch.setattr(pictures, "_read", lambda *_: pytest.fail("read anew"))
    assert torch.equal(load(), small)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pictures, "KEPT", 1)
    paint(tmp_path / "scans" / "a" / "0.png", 99, size=(6, 8))
    paint(tmp_path / "scans" / "a" / "1.png", 99, size=(6, 8))
    assert not torch.equal(load(), small)
    assert len(list(kept.iterdir())) == 2


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
    refuses("b: 0 image files; allowed: 2 and more, to train and to test on; it is empty: remove it if it is no class$")
    (tmp_path / "b" / "scan.DCM").write_bytes(b"")
    refuses(r"; it holds other files \(\.dcm\): image files end in \.bmp, \.gif, ")
    (tmp_path / "b" / "scan.DCM").unlink()
    for number in range(4):
        (tmp_path / "b" / f"patient{number}").mkdir()
    refuses(r"; it holds folders \(patient0, patient1, patient2, \.\.\.\): image files have to lie in it, not below$")
    for number in range(4):
        (tmp_path / "b" / f"patient{number}").rmdir()
    paint(tmp_path / "b" / "0.png", 1)
    refuses("b: 1 image file; allowed: 2 and more, to train and to test on$")
    (tmp_path / "b" / "1.png").write_bytes(b"no image")
    formats = "allowed: BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP$"
    refuses(
        rf"b/1\.png: this image cannot be read \(its content is that of no image, or of another format\); {formats}"
    )
    (tmp_path / "b" / "1.png").write_bytes(b"")
    refuses(rf"b/1\.png: this image cannot be read \(it is empty\); {formats}")
    (tmp_path / "b" / "1.png").write_bytes(bytes(128) + b"DICM" + bytes(40))
    refuses(r"b/1\.png: this image cannot be read \(it is a DICOM file: save its pixels as PNG or TIFF, ")
    whole = (tmp_path / "b" / "0.png").read_bytes()
    (tmp_path / "b" / "1.png").write_bytes(whole[:45])
    refuses(r"1\.png: this image cannot be read, or it is damaged")
    Image.fromarray(np.full((4, 4), 300, np.uint16)).save(tmp_path / "b" / "1.png")
    refuses(r"1\.png: this picture is of more than 8 bits and .*a/0\.png is not; allowed: all or none")
    Image.new("LAB", (4, 4)).save(tmp_path / "b" / "1.tif")
    refuses(r"1\.tif: the pixels are of Pillow's mode LAB; allowed: grey or colour")
    (tmp_path / "b" / "1.tif").unlink()
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
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(FedveilError, match="train/empty: 0 image files; allowed: at least one; it is empty: remove it"):
        load_data(f"folder:{tmp_path}")
    (tmp_path / "train" / "empty").rmdir()
    with pytest.raises(FedveilError, match="c: train has no such class; allowed: a, b"):
        load_data(f"folder:{tmp_path}")


def test_what_is_left_out_or_scaled_is_said(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(6):
            Image.new("LA" if number < 2 else "L", (12, 12), 7).save(tmp_path / label / f"{number}.png")
    (tmp_path / "a" / "scan.dcm").write_bytes(b"")
    (tmp_path / "b" / "about").write_bytes(b"")
    (tmp_path / "b" / ".DS_Store").write_bytes(b"")
    Image.new("L", (12, 12), 7).save(tmp_path / "loose.png")
    name = f"folder:{tmp_path}"
    with pytest.warns(FedveilWarning):
        notes = load_data(name).notes
    assert [note.removeprefix(f"{name}: ") for note in notes[:-1]] == [
        "pictures of 12 px a side were scaled to 64x64 (data.size)",
        "4 of 12 pictures have an alpha channel, which was left out",
        "left out what lies beside the class folders: loose.png (1 in all)",
    ]
    assert notes[-1].startswith(f"{name}: left out 2 files in class folders (.dcm, about): pictures end in .bmp, ")
    with pytest.warns(FedveilWarning):
        assert not any("scaled" in note for note in load_data(name, size=12).notes)


def test_pictures_that_cannot_be_read_are_named_all_at_once(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(12):
            Image.new("L", (12, 12), number).save(tmp_path / label / f"{number:02}.png")
    for number in range(6):
        (tmp_path / "a" / f"{number:02}.png").write_bytes(b"none" * (number % 2))
    name = re.escape(f"folder:{tmp_path}")
    with pytest.raises(FedveilError, match=rf"^{name}: 6 pictures can't be read: ") as refusal:
        load_data(f"folder:{tmp_path}")
    said = str(refusal.value)
    assert [number for number in range(12) if f"a/{number:02}.png: this image" in said] == [0, 1, 2, 3, 4]
    assert said.endswith("; and 1 more")
    assert said.count("\n") == 0
    whole = (tmp_path / "b" / "07.png").read_bytes()
    for number in range(6):
        (tmp_path / "a" / f"{number:02}.png").write_bytes(whole)
    (tmp_path / "b" / "08.png").write_bytes(whole[:-30])  # its header is whole: it fails where pixels are read
    (tmp_path / "b" / "09.png").write_bytes(whole[:-30])
    with pytest.raises(FedveilError, match=rf"^{name}: 2 pictures can't be read: .*08\.png.*; .*09\.png: this image"):
        load_data(f"folder:{tmp_path}")


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"")
    with pytest.raises(FedveilError, match=r"this is not a folder; for an archive of arrays use npz:"):
        load_data(f"folder:{tmp_path / 'x.npz'}")
    assert fetch(f"folder:{tmp_path}") == tmp_path
