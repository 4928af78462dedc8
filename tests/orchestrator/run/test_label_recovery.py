"""Labels that nobody granted, in a whole run: how many were found is a metric, whatever the batch and the steps."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import share_cache, tiny_experiment, write_bars

import fedveil as fv


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "steps"),
    [(8, 3), *(pytest.param(size, 1, marks=pytest.mark.long) for size in (1, 64))],
)
def test_label_recovery_is_recorded(
    size: int, steps: int, ray_cluster: None, tmp_path: Path, modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(share_cache(tmp_path, modules))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    # Three classes, so every batch but the first size repeats labels.
    raw = tiny_experiment(
        write_bars(tmp_path / "bars.npz", train=120 if size < 64 else 400),
        model={"name": "lenet", "width": 4},
        fl={"clients": 2, "rounds": 1, "batch_size": 8, "learning_rate": 0.01},
        audit={
            "rounds": [0],
            "victims": size,
            "batch_size": size,
            "local_steps": steps,
            "labels": "recovered",
            "attacks": [{"name": "inverting_gradients", "steps": 1}],
            "gallery": size,
        },
        resources={"workers": 1},
    )
    (row,) = fv.run(raw).rows
    rate = row.metrics["attack/inverting_gradients/label_recovery"]
    assert 0.5 <= rate <= 1.0
    assert size > 1 or rate == 1.0
