from __future__ import annotations

from pathlib import Path

import pytest
from resuming import numbers, stumbling_experiment, sweep
from tiny import share_cache, write_bars


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bars(tmp_path_factory.mktemp("data") / "bars.npz")


@pytest.fixture(scope="session")
def undisturbed(
    ray_cluster: None, tmp_path_factory: pytest.TempPathFactory, modules: Path
) -> dict[str, dict[str, float]]:
    """What `resuming.stumbling_experiment` comes to where it does not stumble: trial, metric, value."""
    folder = share_cache(tmp_path_factory.mktemp("undisturbed"), modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        result, _ = sweep(stumbling_experiment(folder), folder, patch)
    return numbers(result)
