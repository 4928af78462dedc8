from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mistakes import lines_of

from fedveil.attacks import Adaptive, DeepLeakage
from fedveil.defense.inverse.learnt import InverseTraining
from fedveil.orchestrator.config import check, load_experiment, with_overrides
from fedveil.orchestrator.config.load import set_key
from fedveil.orchestrator.config.training import FLSection
from fedveil.orchestrator.config.yaml import parse

SECTIONS = (
    "audit, data, defense, experiment, fl, model, plugins, references, resources, runs_dir, search, seed, seeds,"
    " tracking"
)
FL_KEYS = ", ".join(sorted(FLSection.model_fields))


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["fl.rounds"], "--set fl.rounds: expected KEY=VALUE, for example --set fl.rounds=5"),
        (["=3"], "--set =3: expected KEY=VALUE"),
        (["fl..rounds=3"], "--set fl..rounds=3: expected KEY=VALUE"),
        (["fl.rounds=[1"], "--set fl.rounds=[1: the value is not YAML (expected ',' or ']'"),
        (["fl.rounds="], "fl.rounds: given nothing; allowed: a whole number"),
        (["fl.rounds=3=4"], "fl.rounds: given '3=4'; allowed: a whole number"),
        (["fl=3"], f"fl: given 3; allowed: a section with keys of {FL_KEYS}"),
        (["seed.x=3"], "seed.x: 'seed' is a value, not a section"),
        (["experiment.x=3"], "experiment.x: 'experiment' is a value, not a section"),
        (
            ["defense=[latent_autoencoder, top_k]", "defense.keep=1"],
            "defense.keep: 'defense' is a list of 2; override it as a whole",
        ),
        (["defense=3", "defense.keep=1"], "defense.keep: 'defense' is a value, not a section"),
        (["defense=top_k", "defense.strength=1"], "defense.strength: unknown key; allowed: keep"),
        (
            ["audit.attacks=[adaptive]", "audit.attacks.0.inverse.steps=5"],
            "audit.attacks.0.inverse.steps: 'audit.attacks' is a list; over",
        ),
        (["foo=1"], f"foo: unknown key; allowed: {SECTIONS}"),
    ],
)
def test_overrides_that_are_refused(overrides: list[str], line: str, tmp_path: Path) -> None:
    (found,) = lines_of("experiment: x\nseed: 1\n", *overrides, folder=tmp_path)
    assert found.startswith(line)


def test_overrides(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text("experiment: x\nfl: {strategy: fedavg}\n", encoding="utf-8")
    overrides = [
        "defense=latent_autoencoder",
        "defense.strength=2",
        "fl.strategy=fedprox",
        "fl.strategy.mu=1e-2",
        "data.partition=dirichlet",
        "data.partition.alpha=0.1",
        "audit.rounds=[0, last]",
        " fl.rounds = 7",
        "audit.attacks=[{name: adaptive, inversion: {name: deep_leakage, steps: 50}, inverse: {steps: 800}}]",
        "search.space.defense.strength={uniform: [1, 2]}",
        "search.panel=[{defense: none}]",
    ]
    experiment, raw = load_experiment(file, overrides)
    assert raw["defense"] == {"name": "latent_autoencoder", "strength": 2}
    assert repr(experiment.fl.build_strategy()) == "FedProx(server_lr=1.0, mu=0.01)"
    assert repr(experiment.data.build_partition()) == "Dirichlet(alpha=0.1, min_size=2)"
    assert experiment.audit.round_numbers(experiment.fl.rounds) == [0, 6]
    assert experiment.search is not None
    assert experiment.search.space == {"defense.strength": {"uniform": [1, 2]}}
    _, adaptive = experiment.audit.build_attacks()
    assert adaptive == Adaptive(inversion=DeepLeakage(steps=50), inverse=InverseTraining(steps=800))


def test_an_override_reaches_into_a_list_of_one_defence() -> None:
    raw: dict[str, Any] = {"defense": ["latent_autoencoder"]}
    set_key(raw, "defense.strength", 2.0)
    assert raw == {"defense": {"name": "latent_autoencoder", "strength": 2.0}}


def test_an_override_leaves_what_an_alias_shares_alone() -> None:
    raw = parse("{a: &shared {k: 1}, b: *shared}")
    set_key(raw, "a.k", 2)
    assert raw == {"a": {"k": 2}, "b": {"k": 1}}


def test_a_whole_section_as_an_override_is_merged_and_what_has_options_is_replaced() -> None:
    raw: dict[str, Any] = {
        "experiment": "x",
        "fl": {"rounds": 3, "clients": 5, "strategy": {"name": "fedprox", "mu": 0.5}},
        "data": {"size": 32, "partition": {"kind": "dirichlet", "alpha": 0.5}},
        "audit": {"victims": 8, "attacks": [{"name": "adaptive", "inverse": {"steps": 5}}]},
        "defense": {"name": "latent_autoencoder", "strength": 2.0},
    }
    varied = with_overrides(
        raw,
        {
            "fl": {"clients": 3, "strategy": {"name": "fedavgm"}},
            "data": {"partition": {"kind": "iid"}},
            "audit": {"attacks": ["adaptive"]},
            "defense": {"name": "latent_autoencoder"},
            "model": {"width": 4},
            "fl.rounds": 4,
        },
    )
    assert varied == {
        "experiment": "x",
        "fl": {"rounds": 4, "clients": 3, "strategy": {"name": "fedavgm"}},
        "data": {"size": 32, "partition": {"kind": "iid"}},
        "audit": {"victims": 8, "attacks": ["adaptive"]},
        "defense": {"name": "latent_autoencoder"},
        "model": {"width": 4},
    }
    assert raw["fl"]["clients"] == 5


def test_a_section_set_on_the_command_line_keeps_the_files_other_keys(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text("experiment: x\nfl: {rounds: 7}\nsearch: {panel: [{seed: 1}], concurrent: 2}\n", encoding="utf-8")
    overrides = ["fl={clients: 3}", "search={panel: [{seed: 2}, {fl: {clients: 4}}]}"]
    experiment, raw = load_experiment(file, overrides)
    assert (experiment.fl.rounds, experiment.fl.clients) == (7, 3)
    assert experiment.search is not None
    assert (experiment.search.concurrent, len(experiment.search.panel)) == (2, 2)
    assert check(with_overrides(raw, experiment.search.panel[1])).fl.rounds == 7
    assert load_experiment(file, ["search=null"])[0].search is None


def test_variants_leave_the_original_alone_and_take_sections_before_keys() -> None:
    raw = {"experiment": "x", "defense": {"name": "top_k", "keep": 0.5}, "fl": {"rounds": 3}}
    varied = with_overrides(raw, {"defense.strength": 2.0, "defense": "latent_autoencoder", "fl.rounds": 4})
    assert varied == {
        "experiment": "x",
        "defense": {"name": "latent_autoencoder", "strength": 2.0},
        "fl": {"rounds": 4},
    }
    assert raw == {"experiment": "x", "defense": {"name": "top_k", "keep": 0.5}, "fl": {"rounds": 3}}
