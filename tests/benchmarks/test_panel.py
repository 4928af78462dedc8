"""The panel: each setting is a trial, the page says what the records say, and the figure names what nothing beats."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.panel import __main__ as panel
from benchmarks.panel.render import PAGE, families, figure_of, page, section
from benchmarks.study.cell import as_row
from benchmarks.study.figure import draw_trade_off
from benchmarks.tables import RESULTS
from fedveil.orchestrator.config import check

MACHINE = {"cpu": "a core", "threads": 1, "torch": "2", "python": "3"}


def row(setting: dict[str, Any], seed: int, accuracy: float, mse: float) -> dict[str, Any]:
    own = setting["defense"] if isinstance(setting["defense"], dict) else {"name": setting["defense"]}
    rest = {key: value for key, value in own.items() if key != "name"}
    metrics = {"utility/accuracy": accuracy, "cost/update_bytes": 1000.0, "privacy/identification_rate": 0.5}
    metrics |= {"privacy/mse": mse, "privacy/mse_low": 0.9 * mse, "privacy/mse_high": 1.1 * mse}
    metrics["privacy/baseline_mse"] = 0.02
    made = as_row("pneumonia", seed, own["name"], rest, metrics, victims=64)
    return made | {"setting": setting, "wall_seconds": 100.0 + seed, "machine": MACHINE}


@pytest.mark.parametrize("data", panel.DATA)
def test_each_setting_is_a_trial(data: str) -> None:
    for setting in panel.settings():
        built = check(panel.experiment(data, 1, setting))
        assert built.seed == 1
        assert built.search is None
        assert built.data.name == {"pneumonia": "pneumoniamnist", "blood": "npz:pbc_blood_28.npz"}[data]
    assert check(panel.experiment(data, 0, {"defense": {"name": "dp_sgd"}, "fl.sampling": "poisson"}))


def test_what_the_record_has_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, *_ = panel.settings()
    tried: list[Any] = []
    monkeypatch.setattr(panel, "settings", lambda: [first, second])
    monkeypatch.setattr(
        panel, "run", lambda data, seed, setting: tried.append((seed, setting)) or row(setting, seed, 0.9, 0.01)
    )
    (tmp_path / "panel-pneumonia.json").write_text(json.dumps({"rows": [row(first, 0, 0.9, 0.01)]}))
    monkeypatch.setattr(sys, "argv", ["panel", "--data", "pneumonia", "--out", str(tmp_path)])
    panel.main()
    assert tried == [(0, second), (1, first), (1, second)]
    assert len(panel.load(tmp_path / "panel-pneumonia.json")) == 4


def test_a_setting_has_a_line_over_its_seeds() -> None:
    setting = {"defense": {"name": "latent", "k": 10}}
    text = section([row(setting, 0, 0.90, 0.010), row(setting, 1, 0.94, 0.012)])
    (line,) = [line for line in text.splitlines() if line.startswith("| `latent`")]
    # mean .92, deviation .0283, t(1) = 12.71: .254; the seeds' intervals .009 to .011 and .0108 to .0132
    assert line == (
        "| `latent` k 10 | 2 | 0.920 ± 0.254 | 0.0110 [0.0099, 0.0121] | 0.0200 | 0.50 | - | - | 1,000 | 100 |"
    )
    assert (
        f"Of {len(panel.settings())} settings, {len(panel.settings()) - 1} are not yet measured with 2 seeds." in text
    )


def test_the_figure_names_what_nothing_beats() -> None:
    best, beaten = {"defense": {"name": "latent", "k": 10}}, {"defense": {"name": "mixup", "alpha": 1}}
    rows = [row(best, 0, 0.9, 0.015), row(beaten, 0, 0.89, 0.014), row({"defense": "none"}, 0, 0.95, 0.0)]
    (axes,) = draw_trade_off(rows, title="all", families=families(), best=True).axes
    assert {text.get_text() for text in axes.texts} == {"latent k 10", "none", "", "guessing the class mean"}
    legend = axes.get_legend()
    assert legend is not None
    assert {text.get_text() for text in legend.get_texts()} == {"latent", "mixup", "none"}


def test_the_page_is_that_of_the_records() -> None:
    assert PAGE.read_text() == page(RESULTS)
    for data in panel.DATA:
        assert (PAGE.parent / figure_of(data)).exists() == (RESULTS / f"panel-{data}.json").exists()
