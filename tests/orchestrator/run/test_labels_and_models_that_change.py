"""Trials whose defences make labels shares, add images to batches, or change the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedveil.fl.executor import SerialExecutor
from fedveil.orchestrator.config import check
from fedveil.orchestrator.run.setup import make_setup
from fedveil.orchestrator.run.trial import Trial
from tests.tiny import TINY_INVERSE, TINY_INVERSION, tiny_experiment, write_bars

ADAPTIVE = {"name": "adaptive", "inversion": TINY_INVERSION, "inverse": TINY_INVERSE, "calibration": 4}
LEARNT = {"name": "learning_to_invert", "steps": 2, "width": 8, "features": 8, "pool": 16}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("defense", "labels"),
    [
        ({"name": "mixup"}, "recovered"),
        ({"name": "concealed_samples", "steps": 1}, "known"),
        ([{"name": "mixup"}, {"name": "precode", "size": 4}, {"name": "sign"}], "known"),
    ],
    ids=str,
)
def test_a_trial_runs_and_its_attacker_is_complete(defense: Any, labels: str, tmp_path: Path, modules: Path) -> None:
    audit = {
        "victims": 4,
        "batch_size": 2,
        "labels": labels,
        "attacks": [TINY_INVERSION, ADAPTIVE, LEARNT],
    }
    raw = tiny_experiment(
        write_bars(tmp_path / "bars.npz"), defense=defense, fl={"rounds": 2}, audit={"rounds": ["last"], **audit}
    )
    experiment = check(raw)
    found = Trial(experiment, make_setup(experiment), SerialExecutor(), cache=modules).run().metrics
    assert found["privacy/complete"] == 1
    for attack in ("inverting_gradients", "adaptive", "learning_to_invert"):
        assert 0 <= found[f"attack/{attack}/mse"] <= 1
        assert 0 <= found[f"attack/{attack}/label_recovery"] <= 1
