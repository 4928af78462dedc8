import importlib
import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from disk import full_disk
from torch import Tensor

from fedveil.fl.cache import State, _versions, cached, fingerprint, sources
from fedveil.fl.data.images import Images


def images() -> Images:
    stream = torch.Generator().manual_seed(0)
    return Images(torch.randint(256, (6, 1, 4, 4), generator=stream, dtype=torch.uint8), torch.arange(6) % 2)


class Builder:
    """Returns other tensors at each call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> State:
        self.calls += 1
        stream = torch.Generator().manual_seed(self.calls)
        return {"w": torch.randn(3, 2, generator=stream), "n": torch.tensor(self.calls)}


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def test_a_second_call_reads_the_same_bits(tmp_path: Path) -> None:
    build = Builder()
    first = cached(tmp_path / "new" / "folder", ("a", 1), build)
    assert equal(cached(tmp_path / "new" / "folder", ("a", 1), build), first)
    assert build.calls == 1


def test_another_key_is_another_entry(tmp_path: Path) -> None:
    build = Builder()
    keys: list[tuple[object, ...]] = [("a", 1), ("a", 2), ("b", 1), ("a", "1"), ("a",)]
    found = [cached(tmp_path, key, build) for key in keys]
    assert build.calls == len(keys)
    assert all(equal(cached(tmp_path, key, build), state) for key, state in zip(keys, found, strict=True))
    assert build.calls == len(keys)


def test_other_code_or_another_pytorch_is_another_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = Builder()
    cached(tmp_path, ("a",), build)
    for name, other in (("torch.__version__", "0.0"), ("fedveil.fl.cache.sources", lambda folder: "other")):
        with monkeypatch.context() as patch:
            patch.setattr(name, other)
            _versions.cache_clear()
            cached(tmp_path, ("a",), build)
    _versions.cache_clear()
    assert build.calls == 3
    cached(tmp_path, ("a",), build)
    assert build.calls == 3


def test_the_code_in_a_key_is_this_floor_and_the_one_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module("fedveil.defense")
    monkeypatch.setattr("fedveil.fl.cache.sources", lambda folder: folder.name)
    _versions.cache_clear()
    assert _versions("fedveil.fl.cache") == (torch.__version__, "fl")
    assert _versions("fedveil.defense.latent_autoencoder") == (torch.__version__, "fl", "defense")
    _versions.cache_clear()


def test_a_users_own_module_is_part_of_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    found = set()
    for text in ("x = 1\n", "x = 2 \n"):
        (tmp_path / "a_plugin_of_mine.py").write_text(text, encoding="utf-8")
        importlib.invalidate_caches()
        sys.modules.pop("a_plugin_of_mine", None)
        importlib.import_module("a_plugin_of_mine")
        _versions.cache_clear()
        found.add(_versions("a_plugin_of_mine"))
    assert {len(versions) for versions in found} == {3}
    assert len(found) == 2
    _versions.cache_clear()


def test_any_change_of_a_source_file_shows(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    found = [sources(tmp_path)]
    for path, text in (("a.py", "x"), ("a.py", "y"), ("inner/a.py", "y"), ("inner/b.py", "")):
        (tmp_path / path).write_text(text, encoding="utf-8")
        found.append(sources(tmp_path))
    (tmp_path / "note.txt").write_text("no code", encoding="utf-8")
    assert len(set(found)) == len(found)
    assert sources(tmp_path) == found[-1]


def test_no_folder_means_no_cache() -> None:
    build = Builder()
    first = cached(None, ("a",), build)
    assert not equal(cached(None, ("a",), build), first)


class Intruder:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.mark),)


def damaged(entry: Path, how: str, mark: Path) -> None:
    if how == "empty":
        entry.write_bytes(b"")
    elif how == "flipped":
        whole = bytearray(entry.read_bytes())
        whole[whole.index(b"data/0") + 100] ^= 1
        entry.write_bytes(whole)
    elif how in ("5", "{}", "null"):
        torch.save(json.loads(how), entry)
    elif how == "another":
        cached(entry.parent, ("b",), Builder())
        (other,) = set(entry.parent.iterdir()) - {entry}
        os.replace(other, entry)
    elif how == "folder":
        entry.unlink()
        entry.mkdir()
    elif how == "text":
        entry.write_text("not tensors")
    elif how == "cut":
        entry.write_bytes(entry.read_bytes()[:-200])
    elif how == "pickle":
        entry.write_bytes(pickle.dumps(Intruder(mark), protocol=2))
    else:
        torch.save(Intruder(mark), entry)


HOWS = ["empty", "text", "cut", "flipped", "5", "{}", "null", "another", "pickle", "code"]


@pytest.mark.parametrize("how", HOWS)
def test_a_damaged_entry_is_built_anew_and_runs_no_code(tmp_path: Path, how: str) -> None:
    build, folder, mark = Builder(), tmp_path / "cache", tmp_path / "mark"
    cached(folder, ("a",), build)
    (entry,) = folder.iterdir()
    damaged(entry, how, mark)
    second = cached(folder, ("a",), build)
    assert build.calls == 2
    assert equal(cached(folder, ("a",), build), second)
    assert build.calls == 2
    assert not mark.exists()


def test_a_write_that_fails_fails_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    build = Builder()
    with full_disk(100):
        assert cached(tmp_path / "cache", ("a",), build)["n"] == 1
    assert list((tmp_path / "cache").iterdir()) == []
    assert cached(tmp_path / "cache", ("a",), build)["n"] == 2
    (entry,) = (tmp_path / "cache").iterdir()
    assert entry.stat().st_mode & 0o777 == 0o600
    assert entry.parent.stat().st_mode & 0o777 == 0o700


def test_an_entry_that_can_be_neither_read_nor_written_is_built(tmp_path: Path) -> None:
    build = Builder()
    cached(tmp_path, ("a",), build)
    (entry,) = tmp_path.iterdir()
    damaged(entry, "folder", entry)
    assert cached(tmp_path, ("a",), build)["n"] == 2
    (tmp_path / "file").touch()
    assert cached(tmp_path / "file", ("a",), build)["n"] == 3


def test_a_build_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def build() -> State:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cached(tmp_path, ("a",), build)
    assert list(tmp_path.iterdir()) == []


def test_a_fingerprint_tells_pixels_labels_and_shape_apart() -> None:
    base = images()
    brighter = base.pixels.clone()
    brighter[5, 0, 3, 3] ^= 1
    others = [
        Images(brighter, base.labels),
        Images(base.pixels, base.labels.flip(0)),
        Images(base.pixels.view(6, 1, 2, 8), base.labels),
        base.take(torch.tensor([1, 0, 2, 3, 4, 5])),
    ]
    assert len({fingerprint(found) for found in [base, *others]}) == 5


def test_a_fingerprint_does_not_depend_on_the_layout_in_memory() -> None:
    base = images()
    turned = base.pixels.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert not turned.is_contiguous()
    assert fingerprint(Images(turned, base.labels)) == fingerprint(base)
    assert fingerprint(Images(base.pixels, torch.stack([base.labels] * 2, 1)[:, 0])) == fingerprint(base)
