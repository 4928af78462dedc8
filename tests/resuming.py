"""Sweeps that stumble, and are resumed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny import tiny_experiment, write_bars

from fedveil.orchestrator.run import api
from fedveil.orchestrator.run.results import SweepResult

STUMBLING = '''
import pathlib
from dataclasses import dataclass

import fedveil as fv
from fedveil.fl.strategies import FedAvg


@fv.register_strategy("stumbling")
@dataclass(frozen=True)
class Stumbling(FedAvg):
    """Fails in the third round as long as there is a stone."""

    def init(self, weights):
        return {"done": 0 * next(iter(weights.values())).flatten()[:1]}

    def step(self, weights, state, totals, updates):
        if state["done"].item() == 2 and pathlib.Path("stone").exists():
            raise RuntimeError("stumbled")
        weights, _ = super().step(weights, {}, totals, updates)
        return weights, {"done": state["done"] + 1}
'''


def stumbling_experiment(folder: Path, **sections: Any) -> dict[str, Any]:
    """Return a sweep of two tiny trials that fail in their third round wherever there is a file ``stone``.

    Args:
        folder: gets the data and the plug-in.
        sections: as for `tiny.tiny_experiment`.
    """
    (folder / "stumbling.py").write_text(STUMBLING)
    return tiny_experiment(
        write_bars(folder / "bars.npz"),
        fl={"rounds": 3, "strategy": "stumbling"},
        audit={"rounds": [0]},
        plugins=[str(folder / "stumbling.py")],
        search={"panel": [{"defense": "none"}, {"defense": {"name": "pixel_noise", "strength": 0.3}}]},
        **sections,
    )


def sweep(
    raw: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[SweepResult, str]:
    monkeypatch.chdir(folder)
    screen = io.StringIO()
    return api.sweep(raw, console=Console(file=screen, width=500), **options), screen.getvalue()


def numbers(result: SweepResult) -> dict[str, dict[str, float]]:
    return {
        row.name: {key: value for key, value in row.metrics.items() if not key.startswith("cost/")}
        for row in result.rows
    }
