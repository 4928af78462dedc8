import hashlib
import os
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from fedveil.fl.data import fetch
from fedveil.fl.data.download import download, file_md5
from fedveil.fl.data.search import cache_folder, find_first, search_folders, user_path
from fedveil.fl.errors import FedveilError


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty checkout to work in, with nothing beside it."""
    work = tmp_path / "checkout"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr("fedveil.fl.data.search._REPOSITORY", work)
    monkeypatch.delenv("FEDVEIL_DATA", raising=False)
    return work


def test_the_order_of_the_folders(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert search_folders() == ()
    one, two, shared = (checkout.parent / name for name in ("one", "two", "shared/data"))
    for folder in (one, two, shared, cache_folder()):
        folder.mkdir(parents=True)
    assert search_folders() == (shared, checkout / "data" / "cache")
    monkeypatch.setenv("FEDVEIL_DATA", os.pathsep.join(map(str, (two, one, two))))
    assert search_folders() == (two, one, shared, checkout / "data" / "cache")
    for folder, name in ((one, "b"), (shared, "a"), (shared, "b")):
        (folder / name).touch()
    assert find_first(["a", "b"]) == one / "b"
    assert find_first(["c"]) is None


def test_the_checkout_is_searched_from_elsewhere(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shared" / "data").mkdir(parents=True)
    away = tmp_path / "far" / "away"
    away.mkdir(parents=True)
    monkeypatch.chdir(away)
    assert search_folders() == (tmp_path / "shared" / "data",)


def test_a_misspelt_variable_is_an_error(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDVEIL_DATA", str(checkout / "dtaa"))
    with pytest.raises(FedveilError, match=r"FEDVEIL_DATA: there is no folder .*dtaa"):
        search_folders()


def test_the_working_folder_comes_before_the_search_folders(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDVEIL_DATA", str(checkout.parent))
    (checkout.parent / "x").touch()
    assert user_path("x", what="npz:x") == checkout.parent / "x"
    (checkout / "x").touch()
    assert user_path("x", what="npz:x") == Path("x")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[str]:
    """The address of a local web server that has ``official.bin`` and, cut short, ``broken.bin``."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "official.bin").write_bytes(b"official")
    (site / "broken.bin").write_bytes(b"offic")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


OFFICIAL_MD5 = hashlib.md5(b"official").hexdigest()


def test_a_download_arrives_whole(checkout: Path, mirror: str) -> None:
    target = checkout / "cache" / "file.bin"
    # The first mirror has nothing, the second a damaged file, the third the right one.
    urls = [f"{mirror}/{name}.bin" for name in ("absent", "broken", "official")]
    assert download(urls, target, md5=OFFICIAL_MD5, what="x") == target
    assert target.read_bytes() == b"official"
    assert file_md5(target) == OFFICIAL_MD5
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]


def test_a_file_that_is_there_is_not_downloaded_again(tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"official")
    assert download([], tmp_path / "file.bin", md5=OFFICIAL_MD5, what="x") == tmp_path / "file.bin"


def test_a_failed_download_leaves_what_was_there(checkout: Path, mirror: str) -> None:
    target = checkout / "file.bin"
    target.write_bytes(b"older")
    message = r"x: file\.bin was looked for in no folder \(set FEDVEIL_DATA to one\) and could not be downloaded"
    with pytest.raises(FedveilError, match=message):
        download([f"{mirror}/broken.bin"], target, md5=OFFICIAL_MD5, what="x")
    assert target.read_bytes() == b"older"
    assert [path.name for path in checkout.iterdir()] == ["file.bin"]


def test_the_packaged_template_needs_no_download(checkout: Path) -> None:
    assert fetch("mni152").is_file()
    assert not cache_folder().exists()
