from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedveil.fl import memory
from fedveil.fl.errors import FedveilError
from fedveil.fl.tensor_files import read_tensors

NAMED = {"0.weight": torch.arange(6.0).view(2, 3), "0.count": torch.tensor(3)}


class Payload:
    """Would make a folder, if it were unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


def test_tensors_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{name: tensor.numpy() for name, tensor in NAMED.items()})
    np.savez_compressed(tmp_path / "b.npz", **{name: tensor.numpy() for name, tensor in NAMED.items()})
    torch.save(NAMED, tmp_path / "c.pt")
    torch.save(NAMED, tmp_path / "named_otherwise.npz")
    for path in tmp_path.iterdir():
        found = read_tensors(path)
        assert isinstance(found, dict)
        assert found.keys() == NAMED.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in NAMED.items())


def test_tensors_in_an_order(tmp_path: Path) -> None:
    given = [torch.full((1,), float(at)) for at in range(12)]
    np.savez(tmp_path / "a.npz", *(tensor.numpy() for tensor in given))
    torch.save(given, tmp_path / "b.pt")
    for path in tmp_path.iterdir():
        found = read_tensors(path)
        # arr_10 does not come before arr_2.
        assert isinstance(found, list)
        assert torch.equal(torch.cat(found), torch.arange(12.0))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    made = tmp_path / "made"
    torch.save({"a": Payload(made)}, tmp_path / "a.pt")
    np.savez(tmp_path / "b.npz", a=np.array([Payload(made)], dtype=object))
    (tmp_path / "c.pt").write_bytes(pickle.dumps({"a": Payload(made)}))
    for name in ("a.pt", "b.npz", "c.pt"):
        with pytest.raises(FedveilError, match=f"^{tmp_path / name}: "):
            read_tensors(tmp_path / name)
        assert not made.exists()
    # The same file, read by those who trust it, runs what is in it.
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert made.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 3}, "a is a int; allowed: tensors"),
        ([torch.ones(1), {}], "entry 1 is a dict; allowed: tensors"),
        (torch.ones(1), "it holds a Tensor; allowed: tensors by name, or a list of them"),
        ({}, "it holds no numbers"),
        ({"a": torch.eye(2).to_sparse()}, "a is no plain tensor; allowed: dense ones, with their numbers"),
        ({"a": torch.empty(2, device="meta")}, "a is no plain tensor; allowed: dense ones, with their numbers"),
        ({"a": torch.ones(2) * 1j}, "a is complex; allowed: real numbers"),
    ],
)
def test_what_holds_no_plain_tensors_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "a.pt"
    torch.save(content, path)
    with pytest.raises(FedveilError) as error:
        read_tensors(path)
    assert str(error.value) == f"{path}: {message}"


def test_what_does_not_fit_the_memory_is_refused_by_what_it_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 10**6)
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(10**6, dtype=np.float32))
    # One number that claims to be a million.
    torch.save({"a": torch.zeros(1).expand(10**6)}, tmp_path / "b.pt")
    for name in ("a.npz", "b.pt"):
        assert (tmp_path / name).stat().st_size < 10_000
        with pytest.raises(FedveilError, match="of memory or more"):
            read_tensors(tmp_path / name)


def test_missing_damaged_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(FedveilError, match=r"cannot be read \(No such file"):
        read_tensors(tmp_path / "none.npz")
    path = tmp_path / "a.npz"
    path.write_bytes(b"no archive")
    with pytest.raises(FedveilError, match=r"neither an \.npz archive nor what torch\.save writes"):
        read_tensors(path)
    torch.save(NAMED, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, b"?" if name.endswith("data.pkl") else content)
    with pytest.raises(FedveilError, match=f"^{path}: "):
        read_tensors(path)
