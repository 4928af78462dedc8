from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mistakes import lines_of

from fedveil.orchestrator.config import ConfigError, check
from fedveil.orchestrator.config.space import corners, grid_points

SECTIONS = (
    "audit, data, defense, experiment, fl, model, plugins, references, resources, runs_dir, search, seed, seeds,"
    " tracking"
)
LATENT_KEYS = (
    "adversary_steps, client_steps, error_cap, privacy_weight, public_steps, scope, steps, strength, utility_weight"
)


def search(text: str) -> str:
    return f"experiment: x\ndefense: latent_autoencoder\nsearch: {{{text}}}\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "search: needs 'space' (dotted key to a range), 'panel' (a list of overrides) or both"),
        (
            "space: {defense.strength: {uniform: [2, 1]}}",
            "search.space.defense.strength: given uniform: [2, 1]; allowed:",
        ),
        (
            "space: {defense.strength: {uniform: [2, 2]}}",
            "search.space.defense.strength: given uniform: [2, 2]; allowed:",
        ),
        (
            "space: {defense.strength: {uniform: [2]}}",
            "search.space.defense.strength: given uniform: [2]; allowed: two",
        ),
        ("space: {defense.strength: {uniform: [a, 2]}}", "search.space.defense.strength: given uniform: ['a', 2];"),
        ("space: {defense.strength: {uniform: [true, 2]}}", "search.space.defense.strength: given uniform: [True, 2];"),
        ("space: {defense.strength: {uniform: [.nan, 2]}}", "search.space.defense.strength: given uniform: [nan, 2];"),
        (
            "space: {defense.strength: {uniform: [1, .inf]}}",
            "search.space: defense.strength: given inf; allowed: a finite",
        ),
        (
            "space: {defense.strength: {uniform: [-1, 2]}}",
            "search.space: defense.strength: given -1.0; it has to be above",
        ),
        (
            "space: {defense.strength: {loguniform: [0, 2]}}",
            "search.space.defense.strength: given loguniform: [0, 2]; both",
        ),
        ("space: {defense.strength: {choice: []}}", "search.space.defense.strength: choice has no values"),
        (
            "space: {defense.strength: {normal: [0, 1]}}",
            "search.space.defense.strength: given {'normal': [0, 1]}; allowed:",
        ),
        ("space: {defense.strength: {grid: [1], choice: [1]}}", "search.space.defense.strength: given {'grid': [1],"),
        ("space: {defense.strength: {}}", "search.space.defense.strength: given {}; allowed: exactly one of grid,"),
        ("space: {fl.rounds: {int: [1, 2.5]}}", "search.space.fl.rounds: given int: [1, 2.5]; both have to be whole"),
        ("space: {fl.clients: {int: [10, 0]}}", "search.space.fl.clients: given int: [10, 0]; allowed: two numbers"),
        (
            "space: {defense.strenght: {grid: [1]}}",
            f"search.space: defense.strenght: unknown key; allowed: {LATENT_KEYS}",
        ),
        ("space: {foo.bar: {grid: [1]}}", f"search.space: foo: unknown key; allowed: {SECTIONS}"),
        ("space: {search.samples: {grid: [1]}}", "search.space.search.samples: a sweep cannot vary this"),
        ("space: {resources.workers: {grid: [1]}}", "search.space.resources.workers: a sweep cannot vary this"),
        ("panel: [{experiment: y}]", "search.panel.0.experiment: a sweep cannot vary this (names the sweep)"),
        ("panel: [{tracking: {}}]", "search.panel.0.tracking: a sweep cannot vary this (a sweep has one record)"),
        ("panel: [{seeds: [1]}]", "search.panel.0.seeds: a sweep cannot vary this (all trials are repeated with the"),
        ("panel: [{plugins: [a]}]", "search.panel.0.plugins: a sweep cannot vary this (they are imported once"),
        ("panel: [{data.name: mnist}]", "search.panel.0.data.name: a sweep cannot vary this (one sweep, one data set"),
        ("panel: [{}, {defence: none}]", f"search.panel.1: defence: unknown key; allowed: {SECTIONS}"),
        ("panel: [{defense: none, defense.keep: 1}]", "search.panel.0: defense.keep: unknown key; allowed: none"),
        ("panel: [{fl.clients: 1, audit.clients: 2}]", "search.panel.0: audit.clients: given 2; allowed: 1 to 1"),
        (
            "space: {seed: {grid: [1]}}, scheduler: asha",
            "search.scheduler: asha stops trials by one objective",
        ),
        ("panel: [{seed: 1}], samples: 9", "search.samples: given 9; it is for drawing from search.space, which is"),
        ("panel: [{seed: 1}], searcher: grid", "search.searcher: given 'grid'; it is for drawing from search.space"),
        ("panel: [{seed: 1}], scheduler: asha", "search.scheduler: given 'asha'; it is for drawing from search.space"),
        (
            "panel: [{audit.attacks: [adaptive]}], objectives: {attack/strongest/mse: max}",
            "search.panel.0: audit.attacks: given adaptive; search.objectives has 'attack/strongest/mse', which",
        ),
        (
            "space: {audit.attacks: {choice: [[adaptive, adaptive], [adaptive]]}}, objectives: {attack/adaptive_2/mse: max}",
            "search.objectives: given 'attack/adaptive_2/mse'; allowed: utility/accuracy",
        ),
        (
            "space: {audit.attacks: {choice: [[adaptive], [baseline]]}}, objectives: {attack/adaptive/mse: max}",
            "search.space: audit.attacks: given none; search.objectives has 'attack/adaptive/mse', which these",
        ),
        (
            "space: {seed: {grid: [1]}}, scheduler: asha, objectives: {privacy/mse: max}",
            "search.scheduler: asha needs an objective that every round has; given 'privacy/mse', allowed: fl/accuracy",
        ),
        (
            "panel: [{seed: 1}], objectives: {accuracy: max}",
            "search.objectives: given 'accuracy'; allowed: utility/accuracy",
        ),
        (
            "panel: [{seed: 1}], objectives: {privacy/msee: max}",
            "search.objectives: given 'privacy/msee'; allowed: utility",
        ),
        (
            "panel: [{seed: 1}], objectives: {attack/trained_images/mse: max}",
            "search.objectives: given 'attack/trained_images/mse'; allowed: utility",
        ),
        (
            "searcher: grid, space: {seed: {int: [0, 3]}}",
            "search.space.seed: given int; the grid searcher needs 'grid'",
        ),
        (
            "searcher: grid, samples: 2, space: {seed: {grid: [0]}}",
            "search.samples: given 2; the grid searcher runs each",
        ),
    ],
)
def test_search_sections(text: str, line: str, tmp_path: Path) -> None:
    (found,) = lines_of(search(text), folder=tmp_path)
    assert found.startswith(line)


def test_a_range_of_fractions_for_whole_numbers_is_refused_although_its_ends_are_whole(tmp_path: Path) -> None:
    found = lines_of(search("space: {fl.rounds: {uniform: [2, 5]}}"), folder=tmp_path)
    assert found == [f"search.space: fl.rounds: given {end}; allowed: a whole number" for end in ("2.0", "5.0")]


def test_a_grid_is_checked_at_every_point(tmp_path: Path) -> None:
    # Neither key is wrong while the other keeps its first value; 4 clients, 5 of them audited, are.
    space = "space: {fl.clients: {grid: [10, 4]}, audit.clients: {grid: [2, 5]}}"
    (found,) = lines_of(search(f"searcher: grid, {space}"), folder=tmp_path)
    assert found == "search.space: audit.clients: given 5; allowed: 1 to 4 (fl.clients)"


def test_objectives_may_name_what_the_attacks_report() -> None:
    def raw(attacks: list[Any], objective: str) -> dict[str, Any]:
        return {
            "experiment": "x",
            "audit": {"attacks": attacks},
            "search": {"panel": [{"seed": 1}], "objectives": {objective: "max"}},
        }

    for attacks, objective in (
        (["adaptive"], "privacy/mse"),
        (["adaptive"], "attack/adaptive/mse_to_perturbed"),
        ([], "attack/baseline/mse"),
        (["adaptive", {"name": "adaptive", "inverse": {"steps": 5}}], "attack/adaptive_2/psnr"),
        ([], "privacy/trained_mse"),
        ([], "cost/update_bytes"),
    ):
        check(raw(attacks, objective))
    with pytest.raises(ConfigError, match=r"search\.objectives: given 'privacy/mse'"):
        check(raw(["baseline"], "privacy/mse"))


def test_corners_touch_each_value_and_both_ends_of_ranges() -> None:
    space = {"a": {"grid": [1, 2, 3]}, "b": {"uniform": [0, 4]}}
    assert list(corners(space)) == [
        {"a": 1, "b": 0.0},
        {"a": 2, "b": 0.0},
        {"a": 3, "b": 0.0},
        {"a": 1, "b": 4.0},
    ]
    assert list(corners({})) == []
    assert grid_points({"a": {"grid": [1, 2]}, "b": {"grid": [3]}}) == [{"a": 1, "b": 3}, {"a": 2, "b": 3}]
