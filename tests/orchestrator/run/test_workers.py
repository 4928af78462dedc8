from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import share_cache, tiny_experiment, write_bars

from fedveil.orchestrator.config import check
from fedveil.orchestrator.run import workers
from fedveil.orchestrator.run.api import run
from fedveil.orchestrator.run.tuning import sweep_parts
from fedveil.orchestrator.run.workers import workers_of

PANEL = [{"defense": "none"}, {"defense": "group_mean"}, {"defense": "latent"}]


@pytest.mark.parametrize(
    ("asked", "there", "at_once", "given"),
    [
        ({}, 2, 5, 1),  # side by side, and more than there is room for
        ({}, 8, 3, 2),
        ({}, 8, 1, 4),  # no more than pieces of a round
        ({"workers": 3}, 8, 5, 3),
        ({}, 0, 1, 1),  # which is refused with a sentence later
    ],
)
def test_trials_side_by_side_come_before_workers_of_one(
    asked: dict[str, Any], there: int, at_once: int, given: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "room", lambda **shares: there)
    experiment = check({"experiment": "e", "resources": asked, "fl": {"clients": 8, "client_chunks": 4}})
    assert workers_of(experiment, at_once=at_once) == given


def test_room_is_asked_for_by_what_a_worker_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}
    monkeypatch.setattr(workers, "room", lambda **shares: asked.update(shares) or 2)
    workers_of(check({"experiment": "e", "resources": {"cpus_per_worker": 0.5, "gpus_per_worker": 0.25}}), at_once=1)
    assert asked == {"cpus_per_worker": 0.5, "gpus_per_worker": 0.25}


@pytest.mark.parametrize(
    ("search", "at_once"),
    [
        ({"panel": PANEL}, {"panel": 3}),
        ({"panel": PANEL, "concurrent": 2}, {"panel": 2}),
        ({"panel": PANEL, "space": {"seed": {"grid": [0, 1]}}, "searcher": "grid"}, {"panel": 5}),
        ({"panel": PANEL, "space": {"seed": {"int": [0, 99]}}, "samples": 7}, {"panel": 3, "search": 7}),
        ({"space": {"seed": {"int": [0, 99]}}, "samples": 7, "searcher": "optuna", "concurrent": 3}, {"search": 3}),
    ],
)
def test_each_part_of_a_sweep_knows_how_many_trials_it_has(search: dict[str, Any], at_once: dict[str, int]) -> None:
    experiment = check({"experiment": "e", "search": search})
    assert experiment.search is not None
    assert {part.name: part.at_once for part in sweep_parts(experiment, experiment.search)} == at_once


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_results_do_not_depend_on_the_number_of_workers(
    tmp_path: Path, modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(share_cache(tmp_path, modules))
    bars = write_bars(tmp_path / "bars.npz")
    found = []
    for count in (1, 2):
        raw = tiny_experiment(bars, fl={"rounds": 1}, audit={"rounds": [0]}, resources={"workers": count})
        (row,) = run(raw).rows
        found.append({key: value for key, value in row.metrics.items() if not key.startswith("cost/")})
    assert found[0] == found[1]
    assert "privacy/mse" in found[0]
