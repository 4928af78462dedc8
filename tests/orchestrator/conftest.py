from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.faults.servers import MlflowServer, free_port

TINY = """
experiment: tiny
data: {name: "npz:two.npz"}
model: {name: convnet, width: 4}
fl: {clients: 2, rounds: 1}
audit: {victims: 2, gallery: 10}
"""
SEARCH = "search: {panel: [{seed: 1}]}\n"


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One server for all tests: starting it takes long. Its `uri` is what most of them need."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"), free_port())
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def own_mlflow_server(tmp_path: Path) -> Iterator[MlflowServer]:
    """A server of the test's own, not started yet."""
    server = MlflowServer(tmp_path, free_port())
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, in which nothing may start Ray."""

    def started(*arguments: object, **options: object) -> None:
        raise AssertionError("this got as far as Ray")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("FEDVEIL_DATA", raising=False)
    monkeypatch.setattr("fedveil.orchestrator.run.api.connect", started)
    images = np.random.default_rng(0).integers(0, 256, (60, 12, 12), dtype=np.uint8)
    arrays = {f"{split}_images": images for split in ("train", "val", "test")}
    labels = {f"{split}_labels": np.arange(60) % 2 for split in ("train", "val", "test")}
    np.savez(tmp_path / "two.npz", **arrays, **labels)
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    (tmp_path / "sweep.yaml").write_text(TINY + SEARCH, encoding="utf-8")
    return tmp_path
