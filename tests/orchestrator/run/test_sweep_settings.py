"""What can be said of a sweep before it runs; no test here needs a cluster."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.tune.search.basic_variant import BasicVariantGenerator
from rich.console import Console
from tiny import tiny_experiment

from fedveil.fl.errors import FedveilError
from fedveil.orchestrator.config import check
from fedveil.orchestrator.run.memory import Memory, settings_to_keep, sweeps
from fedveil.orchestrator.run.names import params_of
from fedveil.orchestrator.run.paths import ExperimentPaths
from fedveil.orchestrator.run.sweep import run_sweep, swept_keys
from fedveil.orchestrator.run.trainable import rows_of
from fedveil.orchestrator.run.tuning import overrides_of, settings_of, sweep_parts, tune_config
from fedveil.orchestrator.tracking import SweptKey

GRID = {"fl.learning_rate": {"grid": [0.1, 0.2, 0.3]}, "fl.local_epochs": {"grid": [1, 2]}}
DRAWN = {"fl.learning_rate": {"loguniform": [0.1, 1.0]}}


def sweep(space: dict[str, Any], **search: Any) -> dict[str, Any]:
    return tiny_experiment(Path("bars.npz"), search={"space": space, **search})


@pytest.mark.parametrize(
    ("space", "searcher", "samples", "trials"),
    [
        (GRID, "grid", 1, 6),
        (GRID, "random", 3, 18),
        ({**DRAWN, "fl.local_epochs": {"grid": [1, 2]}}, "random", 3, 6),
        (DRAWN, "random", 3, 3),
        (GRID, "optuna", 3, 3),
        ({}, "random", 1, 0),
    ],
)
def test_settings_are_counted_as_tune_draws_them(
    space: dict[str, Any], searcher: str, samples: int, trials: int
) -> None:
    panel = [{"fl.learning_rate": 0.5}]
    search = check(sweep(space, searcher=searcher, samples=samples, panel=panel)).search
    assert search is not None
    assert settings_of(search) == trials + 1


@pytest.mark.parametrize(
    ("searcher", "searching", "generator"),
    [("random", True, True), ("grid", False, True), ("optuna", False, True), ("optuna", True, False)],
)
@pytest.mark.parametrize("concurrent", [None, 2])
def test_the_trials_at_a_time_are_limited_where_tune_heeds_it(
    searcher: str, searching: bool, generator: bool, concurrent: int | None
) -> None:
    space = {"fl.learning_rate": {"grid": [0.1, 0.2]}} if searcher == "grid" else DRAWN
    experiment = check(sweep(space, searcher=searcher, concurrent=concurrent))
    assert experiment.search is not None
    config = tune_config(experiment, experiment.search, samples=1, searching=searching)
    assert isinstance(config.search_alg, BasicVariantGenerator) == generator
    if isinstance(config.search_alg, BasicVariantGenerator):
        assert (config.search_alg.max_concurrent, config.max_concurrent_trials) == (concurrent or 0, None)
    else:
        assert config.max_concurrent_trials == concurrent


def test_the_panel_and_a_grid_are_fixed_trials_with_names_and_the_rest_is_drawn() -> None:
    panel = [{"defense": "none"}, {"fl.learning_rate": 0.5}]
    experiment = check(sweep(DRAWN, panel=panel, samples=3))
    assert experiment.search is not None
    fixed, drawn = sweep_parts(experiment, experiment.search)
    assert (fixed.name, drawn.name, drawn.config.num_samples) == ("panel", "search", 3)
    named = [overrides_of({"panel": point}) for point in fixed.space["panel"]["grid_search"]]
    assert named == [(panel[0], "none"), (panel[1], "learning_rate=0.5")]
    assert overrides_of({"fl.learning_rate": 0.25}) == ({"fl.learning_rate": 0.25}, "learning_rate=0.25")
    experiment = check(sweep(GRID, searcher="grid", panel=panel))
    assert experiment.search is not None
    (fixed,) = sweep_parts(experiment, experiment.search)
    assert len(fixed.space["panel"]["grid_search"]) == 8


def resume(raw: dict[str, Any]) -> None:
    run_sweep(check(raw), raw, Console(file=io.StringIO()), published=True, resume=True)


def test_nothing_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FedveilError, match=r"--resume: there is nothing to resume, no .*runs/tiny/sweep\.json"):
        resume(sweep(DRAWN))
    assert not list(tmp_path.iterdir())


def test_a_sweep_with_other_settings_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = check({**sweep(DRAWN), "tracking": {"uri": "http://user:old@host"}})
    book = sweeps(ExperimentPaths.of(before))
    book.keep(Memory("r", "t", settings_to_keep(before)))
    now = {**sweep(GRID, samples=2), "seed": 1, "tracking": {"uri": "http://user:new@host"}}
    with pytest.raises(FedveilError) as refusal:
        resume(now)
    said = str(refusal.value)
    assert "\n" not in said
    assert str(book.file) in said
    changed = (
        "seed, search.samples, search.space.fl.learning_rate.grid, search.space.fl.learning_rate.loguniform,"
        " search.space.fl.local_epochs"
    )
    for key in changed.split(", "):
        assert key in said
    assert "tracking" not in said
    assert "old" not in said


def test_a_sweep_without_a_search_is_refused() -> None:
    raw = tiny_experiment(Path("bars.npz"))
    with pytest.raises(FedveilError, match="no 'search' section"):
        run_sweep(check(raw), raw, Console(file=io.StringIO()), published=True)


def test_a_trial_that_an_interrupted_sweep_never_began_has_no_row() -> None:
    assert rows_of(SimpleNamespace(config=None, metrics=None, error=None), cast(Any, None)) == []


def test_a_panel_of_defences_is_one_thing_that_is_swept() -> None:
    panel = [{"defense": "none"}, {"defense": {"name": "pixel_noise", "strength": 0.2}}]
    several, one, mixed = (
        check(sweep(space, samples=1, panel=own)).search
        for space, own in (({}, panel), (DRAWN, panel[:1]), (DRAWN, [*panel, {"seed": 1}]))
    )
    assert several is not None
    assert one is not None
    assert mixed is not None
    defenses = SweptKey("defense.title", "panel none, pixel_noise_strength=0.2", numeric=False)
    rate = SweptKey("fl.learning_rate", "loguniform [0.1, 1.0]")
    assert swept_keys(several) == [defenses]
    assert swept_keys(one) == [rate]
    assert swept_keys(mixed) == [rate, defenses]


@pytest.mark.parametrize(
    ("defense", "title"),
    [
        ("none", "none"),
        ({"name": "pixel_noise", "strength": 0.2}, "pixel noise 0.2"),
        ({"name": "latent", "k": 5}, "latent k 5"),
        ([{"name": "latent", "k": 5}, {"name": "top_k", "keep": 0.1}], "latent+top k k 5"),
    ],
)
def test_a_trial_says_its_defence_with_its_dial(defense: Any, title: str) -> None:
    assert params_of(check(sweep(DRAWN) | {"defense": defense}))["defense.title"] == title
