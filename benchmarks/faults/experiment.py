"""The run and the sweep in which faults are caused: all that a real one has, on few embedded images."""

from __future__ import annotations

from typing import Any

NAME = "faults"
ROUNDS = 3
_INVERSION = {"name": "inverting_gradients", "steps": 3}
_RUN: dict[str, Any] = {
    "experiment": NAME,
    "data": {"name": "mni152", "limit": 90},
    "model": {"name": "convnet", "width": 4},
    "fl": {"clients": 3, "rounds": ROUNDS, "batch_size": 8, "learning_rate": 0.05},
    "references": {"measure": False},
    "audit": {
        "rounds": [0, "last"],
        "victims": 4,
        "attacks": [
            _INVERSION,
            {
                "name": "adaptive_modules",
                "inversion": _INVERSION,
                "inverse": {"steps": 3, "batch_size": 8, "width": 8},
                "calibration": 4,
            },
        ],
        "gallery": 20,
    },
    "resources": {"workers": 2, "cpus_per_worker": 0.5},
}
_SEARCH = {
    "space": {"fl.learning_rate": {"loguniform": [0.02, 0.1]}},
    "samples": 3,
    "searcher": "random",
    "concurrent": 1,
}
"""Three trials in turn, which one process leads: the start of another would take longer than a trial does."""


def experiment(command: str) -> dict[str, Any]:
    """Return what stands in the experiment file of ``run`` or ``sweep``."""
    if command == "run":
        return dict(_RUN)
    return {**_RUN, "resources": {"workers": 1, "cpus_per_worker": 1}, "search": _SEARCH}
