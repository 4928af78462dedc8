from __future__ import annotations

from pathlib import Path

import pytest

from fedveil.orchestrator.tracking import TrackingSettings


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def where(store: str, tmp_path: Path, request: pytest.FixtureRequest) -> TrackingSettings:
    """An experiment for each test."""
    return TrackingSettings(experiment=request.node.name, uri=store, spool=tmp_path / "spool")
