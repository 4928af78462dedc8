"""`load_data` itself: what it keeps, and sources of the user's own."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fedveil.fl.data import ImageData, Images, Source, available, fetch, load_data, register_data
from fedveil.fl.data.source import named
from fedveil.fl.errors import FedveilError


def write_npz(path: Path, *, seed: int, count: int = 8) -> None:
    chance = np.random.default_rng(seed)
    splits = {
        f"{split}_{part}": chance.integers(0, 256, (count, 9, 9), dtype=np.uint8) if part == "images" else labels
        for split in ("train", "test")
        for part, labels in (("images", None), ("labels", np.arange(count) % 2))
    }
    np.savez(path, **splits)  # type: ignore[arg-type]


def test_data_are_loaded_once_until_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    write_npz(path, seed=0)
    first = load_data(f"npz:{path}")
    assert load_data(f"npz:{path}") is first
    assert load_data(f"npz:{path}", limit=4) is not first
    write_npz(path, seed=1)
    os.utime(path, ns=(1, 1))
    second = load_data(f"npz:{path}")
    assert not torch.equal(second.train.pixels, first.train.pixels)
    assert load_data(f"npz:{path}") is second


def test_a_file_that_changes_inside_a_folder_is_read_anew(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("L", (8, 8), 100 + number).save(tmp_path / name / f"{number}.png")
    first = load_data(f"folder:{tmp_path}", size=8)
    assert load_data(f"folder:{tmp_path}", size=8) is first
    Image.new("L", (8, 8), 7).save(tmp_path / "b" / "3.png")
    second = load_data(f"folder:{tmp_path}", size=8)
    assert len(second.train) + len(second.test) == len(first.train) + len(first.test) + 1


def test_a_pool_is_limited_after_it_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    write_npz(path, seed=0)
    data = load_data(f"npz:{path}", pool=True, limit=4)
    assert (len(data.train), len(data.val), len(data.test)) == (4, 0, 4)
    assert any("data.pool" in note for note in data.notes)


@pytest.fixture
def empty_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named, "_entries", dict(named._entries))


@pytest.mark.usefixtures("empty_registry")
def test_a_source_of_the_users_own_needs_one_method() -> None:
    @register_data("stripes")
    class Stripes(Source):
        """Bright and dark stripes.

        More is said here.
        """

        def load(self, *, size: int | None, seed: int) -> ImageData:
            side = size or 8
            pixels = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 1, side, side).contiguous()
            images = Images(pixels, torch.arange(6) % 2)
            return ImageData(self.name, images, images, images, ("dark", "bright"), published=False)

    assert load_data("stripes", size=10).train.shape == (1, 10, 10)
    assert load_data("stripes").name == "stripes"
    [entry] = [entry for entry in available() if entry.name == "stripes"]
    assert entry.origin == "Bright and dark stripes"
    with pytest.raises(FedveilError, match="stripes: there is nothing to download"):
        fetch("stripes")
    with pytest.raises(FedveilError, match="data set 'stripes' is registered twice"):
        register_data("stripes")(type("Other", (Stripes,), {}))


@pytest.mark.usefixtures("empty_registry")
def test_what_is_no_source_is_refused() -> None:
    with pytest.raises(FedveilError, match="data set 'int': int is no Source"):
        register_data("int")(int)
    assert "int" not in named


def test_an_unknown_name_is_answered_with_those_that_exist() -> None:
    with pytest.raises(FedveilError, match=r"unknown data set 'mni153'; allowed: .*mni152.*npz:PATH"):
        load_data("mni153")
