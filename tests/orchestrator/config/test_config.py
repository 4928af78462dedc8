from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedveil.attacks import ATTACKS, Adaptive, DeepLeakage
from fedveil.attacks.inverse import InverseTraining
from fedveil.defense import DEFENSES
from fedveil.fl.models import MODELS
from fedveil.fl.strategies import STRATEGIES
from fedveil.orchestrator.config import ConfigError, Experiment, check, load_experiment, with_overrides
from fedveil.orchestrator.config.load import set_key
from fedveil.orchestrator.config.options import build, options_of
from fedveil.orchestrator.config.schema import FLSection
from fedveil.orchestrator.config.space import corners, grid_points
from fedveil.orchestrator.config.uri import uri_fault
from fedveil.orchestrator.config.yaml import dump, parse
from fedveil.orchestrator.tracking import ImagePolicy

DESIGN = """
experiment: pneumonia-minimax
data: {name: pneumoniamnist, partition: {kind: dirichlet, alpha: 0.5}}
model: {name: convnet}
fl: {clients: 10, rounds: 20, local_epochs: 1, batch_size: 32, strategy: fedavg}
defense: {name: latent, strength: 1.0, privacy_weight: 1.0, utility_weight: 1.0}
audit: {rounds: [0, 1, middle, last], victims: 64, batch_size: 1, attacks: [inverting_gradients, adaptive]}
search:
  space: {defense.strength: {loguniform: [0.1, 4]}, defense.privacy_weight: {loguniform: [0.1, 10]}}
  samples: 24
  searcher: optuna
  objectives: {utility/accuracy: max, privacy/mse: max}
resources: {workers: 2, cpus_per_worker: 1, gpus_per_worker: 0}
"""
SECTIONS = "audit, data, defense, experiment, fl, model, plugins, resources, search, seed, seeds, tracking"
FL_KEYS = ", ".join(sorted(FLSection.model_fields))
LATENT_KEYS = (
    "adversary_steps, client_steps, error_cap, privacy_weight, public_steps, scope, steps, strength, utility_weight"
)
DEFENSE_NAMES = "latent, latent_noise, none, pixel_noise, top_k, update_noise"
NAME_RULE = "allowed: up to 100 letters, digits, '_', '-' and '.', a letter or digit first"
DEFENSE_RULE = "allowed: a name, {name: NAME, option: value}, or a list of these"
JARGON = ("nput should", "literal[", "instance of", "Section", "constrained", "Value error", "dictionary", "pydantic")


def lines_of(text: str, *overrides: str, folder: Path) -> list[str]:
    """Return the lines of the refusal of an experiment file, without the file's name."""
    file = folder / "e.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refusal:
        load_experiment(file, overrides)
    assert str(refusal.value) == "\n".join(refusal.value.lines)
    for line in refusal.value.lines:
        assert not any(word in line for word in JARGON), line
    return [line.replace(str(file), "FILE") for line in refusal.value.lines]


def test_the_example_of_the_design_is_valid_as_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(DESIGN, encoding="utf-8")
    experiment, raw = load_experiment(file)
    assert experiment.experiment == "pneumonia-minimax"
    assert repr(experiment.build_defense()).startswith("LatentPerturbation(strength=1.0, privacy_weight=1.0")
    assert repr(experiment.data.build_partition()) == "Dirichlet(alpha=0.5, min_size=2)"
    assert [attack.name for attack in experiment.audit.build_attacks()] == [
        "baseline",
        "inverting_gradients",
        "adaptive",
    ]
    assert experiment.audit.round_numbers(20) == [0, 1, 10, 19]
    assert experiment.search is not None
    assert list(experiment.search.objectives) == ["utility/accuracy", "privacy/mse"]
    assert raw["audit"]["rounds"] == [0, 1, "middle", "last"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("fl: [1", "FILE, line 3: is not YAML that fedveil reads (expected ',' or ']', but got '<stream end>')"),
        (
            "fl:\n\tclients: 3",
            "FILE, line 3: is not YAML that fedveil reads (found character '\\t' that cannot start any",
        ),
        ("a: \x00", "FILE: is not YAML that fedveil reads (special characters are not allowed)"),
        ("---\nb: 1", "FILE, line 2: is not YAML that fedveil reads (but found another document)"),
        (
            "a: !!python/name:os.system",
            "FILE, line 2: is not YAML that fedveil reads (could not determine a constructor",
        ),
        ("a: !!bool maybe", "FILE, line 2: is not YAML that fedveil reads (this value does not fit its type)"),
        pytest.param("a: " + "[" * 5000, "FILE: is not YAML that fedveil reads (nested too deeply)", id="deep"),
        pytest.param(
            "a: " + "9" * 5000,
            "FILE, line 2: is not YAML that fedveil reads (this value does not fit its type)",
            id="long",
        ),
        ("seed: 1\nseed: 2", 'FILE, line 3: is not YAML that fedveil reads (found duplicate key "seed")'),
        (
            "fl: {rounds: 1, rounds: 2}",
            'FILE, line 2: is not YAML that fedveil reads (found duplicate key "rounds")',
        ),
        ("? {a: 1}\n: b", "FILE, line 2: is not YAML that fedveil reads (found unhashable key)"),
    ],
)
def test_bad_yaml_is_one_line(text: str, line: str, tmp_path: Path) -> None:
    (found,) = lines_of(f"experiment: x\n{text}\n", folder=tmp_path)
    assert found.startswith(line)


@pytest.mark.parametrize("text", ["", "null", "- experiment", "hello", "3", "# nothing but a comment"])
def test_a_file_that_is_no_mapping(text: str, tmp_path: Path) -> None:
    expected = "FILE: expected keys and values, for example 'experiment: my-first'"
    assert lines_of(text, folder=tmp_path) == [expected]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    for name, said in (("none.yaml", "No such file"), (".", "Is a directory"), ("b.yaml", "is not UTF-8 text")):
        with pytest.raises(ConfigError, match=said) as refusal:
            load_experiment(tmp_path / name)
        assert len(refusal.value.lines) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1.5E+2", 150.0),
        ("-.inf", -math.inf),
        (".5", 0.5),
        ("010", 10),
        ("-3", -3),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("yes", "yes"),
        ("off", "off"),
        ("2020-01-01", "2020-01-01"),
        ("True", True),
        ("~", None),
        ("'1'", "1"),
        ("{<<: {a: 1, b: 2}, a: 3}", {"a": 3, "b": 2}),
    ],
)
def test_scalars_mean_what_they_look_like(text: str, value: object) -> None:
    found = parse(text)
    assert found == value
    assert type(found) is type(value)


TEXTS = ["a", "b c", "last", "", "yes", "1_000", "010", "2020-01-01", "=", "a: b", "- c", "null", "1e-3", "#"]
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=10,
)


@given(PLAIN)
@settings(deadline=None, max_examples=100)
def test_what_is_dumped_is_read_back(value: object) -> None:
    assert parse(dump(value)) == value


def test_a_dump_keeps_the_order_and_quotes_what_would_be_read_as_something_else() -> None:
    assert dump({"b": 1e-5, "a": ["yes", "010", "2020-01-01", None]}) == (
        "b: 1e-05\na:\n- yes\n- '010'\n- '2020-01-01'\n- null\n"
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("foo: 1", f"foo: unknown key; allowed: {SECTIONS}"),
        ("3: 4", f"3: unknown key; allowed: {SECTIONS}"),
        ("fl: {client: 3}", f"fl.client: unknown key; allowed: {FL_KEYS}"),
        ("fl: {3: 4}", f"fl.3: unknown key; allowed: {FL_KEYS}"),
        ("fl: 3", f"fl: given 3; allowed: a section with keys of {FL_KEYS}"),
        ("fl:", f"fl: given nothing; allowed: a section with keys of {FL_KEYS}"),
        ("model: lenet", "model: given 'lenet'; allowed: a section with keys of name, norm, width"),
        ('fl: {clients: "10"}', "fl.clients: given '10'; allowed: a whole number"),
        ("fl: {clients: true}", "fl.clients: given true; allowed: a whole number"),
        ("fl: {clients: 3.0}", "fl.clients: given 3.0; allowed: a whole number"),
        ("fl: {clients: -1}", "fl.clients: given -1; allowed: 1 or more"),
        (f"fl: {{clients: 1{'0' * 30}}}", f"fl.clients: given 1{'0' * 30}; allowed: at most 1000000000"),
        ("fl: {learning_rate: true}", "fl.learning_rate: given true; allowed: a number"),
        ("fl: {learning_rate: .nan}", "fl.learning_rate: given nan; allowed: a finite number"),
        ("fl: {learning_rate: .inf}", "fl.learning_rate: given inf; allowed: a finite number"),
        ("fl: {learning_rate: 0}", "fl.learning_rate: given 0; allowed: above 0"),
        ("fl: {cohort: 1.5}", "fl.cohort: given 1.5; allowed: at most 1.0"),
        ("data: {public_fraction: 1.0}", "data.public_fraction: given 1.0; allowed: below 1.0"),
        ("data: {name: 3}", "data.name: given 3; allowed: text"),
        ("data: {size: 2}", "data.size: given 2; allowed: 8 or more"),
        ("seed: -1", "seed: given -1; allowed: 0 or more"),
        ("seed: 9223372036854775808", "seed: given 9223372036854775808; allowed: below 9223372036854775808"),
        ("model: {norm: layer}", "model.norm: given 'layer'; allowed: 'none', 'group' or 'batch'"),
        ("audit: {labels: yes}", "audit.labels: given 'yes'; allowed: 'known' or 'recovered'"),
        ("audit: {attacks: adaptive}", "audit.attacks: given 'adaptive'; allowed: a list such as [a, b]"),
        ("audit: {rounds: last}", "audit.rounds: given 'last'; allowed: a list such as [a, b]"),
        ("audit: {rounds: []}", "audit.rounds: given []; allowed: at least one entry"),
        ("audit: {rounds: [midle]}", "audit.rounds.0: given 'midle'; allowed: round numbers from 0, middle, last"),
        ("audit: {rounds: [0, -1]}", "audit.rounds.1: given -1; allowed: round numbers from 0, middle, last"),
        ("audit: {rounds: [true]}", "audit.rounds.0: given true; allowed: round numbers from 0, middle, last"),
        ("audit: {rounds: [[0]]}", "audit.rounds.0: given [0]; allowed: round numbers from 0, middle, last"),
        ("audit: {attacks: [3]}", "audit.attacks.0: given 3; allowed: a name or {name: NAME, option: value}"),
        ("audit: {attacks: [adaptive, {3: 1}]}", "audit.attacks.1: given {3: 1}; allowed: a name or {name: NAME,"),
        ("audit: {balanced: 1}", "audit.balanced: given 1; allowed: true or false"),
        ("data: {auxiliary_fraction: 0}", "data.auxiliary_fraction: given 0; allowed: above 0"),
        ("seeds: 3", "seeds: given 3; allowed: a list such as [a, b]"),
        ("seeds: [0, -1]", "seeds.1: given -1; allowed: 0 or more"),
        ("plugins: mine", "plugins: given 'mine'; allowed: a list such as [a, b]"),
        ("plugins: [3]", "plugins.0: given 3; allowed: text"),
        ("tracking: {images: foo}", "tracking.images: given 'foo'; allowed: none, grid, all"),
        ("tracking: {images: [all]}", "tracking.images: given ['all']; allowed: none, grid, all"),
        ("tracking: {uri: 3}", "tracking.uri: given 3; allowed: text"),
        ("resources: {cpus_per_worker: 0}", "resources.cpus_per_worker: given 0; allowed: 0.0001 or more"),
        ("resources: {cpus_per_worker: 1e-5}", "resources.cpus_per_worker: given 1e-05; allowed: 0.0001 or more"),
        ("resources: {gpus_per_worker: 1e-5}", "resources.gpus_per_worker: given 1e-05; allowed: 0, or 0.0001 or more"),
        ("tracking: {uri: ./mlruns}", "tracking.uri: given './mlruns'; allowed: sqlite:///FILE, http://HOST:PORT, "),
        ("tracking: {uri: ''}", "tracking.uri: given ''; allowed: sqlite:///FILE"),
        ("tracking: {uri: htp://me:secret@x}", "tracking.uri: given 'htp://x'; allowed: sqlite:///FILE"),
        ("search: []", "search: given []; allowed: a section with keys of concurrent, objectives, panel, samples,"),
        ("search: {searcher: foo}", "search.searcher: given 'foo'; allowed: 'grid', 'random' or 'optuna'"),
        ("search: {objectives: {}}", "search.objectives: given {}; allowed: at least one entry"),
        ("search: {objectives: {a: up}}", "search.objectives.a: given 'up'; allowed: 'max' or 'min'"),
        ("search: {panel: {defense: none}}", "search.panel: given {'defense': 'none'}; allowed: a list such as [a, b]"),
        ("search: {panel: [none]}", "search.panel.0: given 'none'; allowed: keys and values"),
        ("search: {panel: [{1: 2}]}", "search.panel.0.1: this key is not text"),
        ("search: {space: {a: [1, 2]}}", "search.space.a: given [1, 2]; allowed: keys and values"),
        ("search: {space: {a: {grid: 3}}}", "search.space.a.grid: given 3; allowed: a list such as [a, b]"),
        ("defense: 3", f"defense: given 3; {DEFENSE_RULE}"),
        ("defense:", f"defense: given nothing; {DEFENSE_RULE}"),
        ("defense: [[latent]]", f"defense: given [['latent']]; {DEFENSE_RULE}"),
        ("defense: {name: latent, 3: 2}", f"defense: given {{'name': 'latent', 3: 2}}; {DEFENSE_RULE}"),
        ("fl: {strategy: [fedavg]}", "fl.strategy: given ['fedavg']; allowed: a name or {name: NAME, option: value}"),
        ("data: {partition: 3}", "data.partition: given 3; allowed: a name or {kind: NAME, option: value}"),
    ],
)
def test_single_keys(text: str, line: str, tmp_path: Path) -> None:
    (found,) = lines_of(f"experiment: x\n{text}\n", folder=tmp_path)
    assert found.startswith(line)


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "../x", "-x", "Ünder", "a b", '"a\\n"', "''", "a" * 101])
def test_names_that_are_no_folder_names(name: str, tmp_path: Path) -> None:
    (found,) = lines_of(f"experiment: {name}\n", folder=tmp_path)
    assert found.startswith("experiment: given")
    assert found.endswith(NAME_RULE)


def test_other_names(tmp_path: Path) -> None:
    assert lines_of("seed: 1", folder=tmp_path) == ["experiment: is missing"]
    assert lines_of("experiment: 3", folder=tmp_path) == ["experiment: given 3; allowed: text"]
    taken = "experiment: given 'cache'; this name is taken by the folder runs/cache"
    assert lines_of("experiment: cache", folder=tmp_path) == [taken]
    assert check({"experiment": "A.b_c-1" + "d" * 93}).experiment.startswith("A.b")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("defense: latnet", f"defense.name: given 'latnet'; allowed: {DEFENSE_NAMES}"),
        ("defense: {strength: 1}", f"defense.name: is missing; allowed: {DEFENSE_NAMES}"),
        ("defense: {name: 3}", f"defense.name: given 3; allowed: {DEFENSE_NAMES}"),
        ("defense: []", "defense: the list is empty; 'none' is the undefended client"),
        ("defense: {name: top_k, strength: 1}", "defense.strength: unknown key; allowed: keep"),
        ("defense: {name: none, strength: 1}", "defense.strength: unknown key; allowed: none"),
        ("defense: [none, {name: latent, k: 2}]", f"defense.1.k: unknown key; allowed: {LATENT_KEYS}"),
        ("defense: {name: latent, public_models: 1}", f"defense.public_models: unknown key; allowed: {LATENT_KEYS}"),
        ('defense: {name: latent, strength: "1"}', "defense.strength: given '1'; allowed: a number"),
        ("defense: {name: latent, strength: true}", "defense.strength: given true; allowed: a number"),
        ("defense: {name: latent, strength: .nan}", "defense.strength: given nan; allowed: a finite number"),
        ("defense: {name: latent, strength: -1}", "defense.strength: given -1.0; it has to be above 0 and finite"),
        ("defense: {name: latent, steps: 1.5}", "defense.steps: given 1.5; allowed: a whole number"),
        ("defense: {name: latent, scope: both}", "defense.scope: given 'both'; allowed: 'client' or 'public'"),
        ("defense: [latent, {name: top_k, keep: 2}]", "defense.1.keep: given 2.0; it has to be above 0 and at most 1"),
        (
            "fl: {strategy: foo}",
            "fl.strategy.name: given 'foo'; allowed: fedadam, fedavg, fedprox, fedsgd, krum, median",
        ),
        ("fl: {strategy: {name: fedavg, mu: 1}}", "fl.strategy.mu: unknown key; allowed: server_lr"),
        ("fl: {strategy: {name: fedprox, mu: a}}", "fl.strategy.mu: given 'a'; allowed: a number"),
        ("fl: {strategy: {name: fedprox, mu: -1}}", "fl.strategy.mu: given -1.0; it must be at least 0"),
        ("fl: {strategy: {name: fedadam, server_lr: 0}}", "fl.strategy.server_lr: given 0.0; it must be above 0"),
        ("fl: {strategy: {name: trimmed_mean, trim: 0.5}}", "fl.strategy.trim: given 0.5; it must be in [0, 0.5)"),
        ("data: {partition: foo}", "data.partition.kind: given 'foo'; allowed: dirichlet, iid, shards"),
        ("data: {partition: {name: iid}}", "data.partition.kind: is missing; allowed: dirichlet, iid, shards"),
        ("data: {partition: {kind: iid, alpha: 1}}", "data.partition.alpha: unknown key; allowed: none"),
        ("data: {partition: {kind: dirichlet, alpha: 0}}", "data.partition.alpha: given 0.0; it must be above 0"),
        (
            "data: {partition: {kind: shards, alpha: 1}}",
            "data.partition.alpha: unknown key; allowed: classes_per_client",
        ),
        (
            "audit: {attacks: [foo]}",
            "audit.attacks.0.name: given 'foo'; allowed: adaptive, adaptive_modules, analytic,",
        ),
        ("audit: {attacks: [{steps: 3}]}", "audit.attacks.0.name: is missing; allowed: adaptive, adaptive_modules,"),
        (
            "audit: {attacks: [{name: inverting_gradients, foo: 1}]}",
            "audit.attacks.0.foo: unknown key; allowed: chunk, learning_rate, opponents, place, restarts, start, steps, tv",
        ),
        (
            "audit: {attacks: [adaptive, {name: inverting_gradients, steps: 0}]}",
            "audit.attacks.1.steps: given 0; it has to be at least 1",
        ),
        ("audit: {attacks: [{name: deep_leakage, tv: -1}]}", "audit.attacks.0.tv: given -1.0; it has to be at least 0"),
        ("audit: {attacks: [{name: baseline, steps: 1}]}", "audit.attacks.0.steps: unknown key; allowed: none"),
        (
            "audit: {attacks: [{name: adaptive, inversion: {name: deep_leakage, steps: 0, foo: 1}}]}",
            "audit.attacks.0.inversion: given {'name': 'deep_leakage', 'steps': 0, 'foo': 1}; foo: unknown key; allowed:",
        ),
        (
            "audit: {attacks: [{name: adaptive, inversion: {name: deep_leakage, steps: 0}}]}",
            "audit.attacks.0.inversion: given {'name': 'deep_leakage', 'steps': 0}; deep_leakage: steps is 0;",
        ),
        (
            "audit: {attacks: [{name: adaptive, inversion: baseline}]}",
            "audit.attacks.0.inversion: given 'baseline'; it has to be an attack that matches gradients",
        ),
        (
            "audit: {attacks: [{name: adaptive, inversion: nothing}]}",
            "audit.attacks.0.inversion: given 'nothing'; unknown attack 'nothing'; allowed: adaptive,",
        ),
        (
            "audit: {attacks: [{name: adaptive, inversion: 3}]}",
            "audit.attacks.0.inversion: given 3; allowed: a name or {name: NAME,",
        ),
        (
            "audit: {attacks: [{name: adaptive, inverse: 3}]}",
            "audit.attacks.0.inverse: given 3; allowed: a section with",
        ),
        (
            "audit: {attacks: [{name: adaptive, inverse: {foo: 3}}]}",
            f"audit.attacks.0.inverse.foo: unknown key; allowed: {', '.join(sorted(options_of(InverseTraining)))}",
        ),
        (
            "audit: {attacks: [{name: adaptive, inverse: {width: a}}]}",
            "audit.attacks.0.inverse.width: given 'a'; allowed: a whole number",
        ),
        (
            "audit: {attacks: [baseline, {name: adaptive, inverse: {steps: 0}}]}",
            "audit.attacks.1.inverse.steps: given 0; it has to be at least 1",
        ),
        ("model: {name: foo}", "model.name: given 'foo'; allowed: convnet, lenet, mlp, resnet18, resnet20"),
    ],
)
def test_settings_whose_keys_depend_on_a_name(text: str, line: str, tmp_path: Path) -> None:
    (found,) = lines_of(f"experiment: x\n{text}\n", folder=tmp_path)
    assert found.startswith(line)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("audit: {rounds: [0, 99]}", "audit.rounds: given 99; allowed: 0 to 19 (fl.rounds - 1), middle, last"),
        ("audit: {victims: 10, batch_size: 3}", "audit.victims: given 10; has to be a multiple of audit.batch_size 3"),
        ("audit: {clients: 11}", "audit.clients: given 11; allowed: 1 to 10 (fl.clients)"),
        (
            "audit: {observations: 21}",
            "audit.observations: given 21; clients train on each image 20 time(s) (fl.rounds times fl.local_epochs);",
        ),
        ("audit: {observations: 0}", "audit.observations: given 0; allowed: 1 or more"),
        ("seed: 1\nseeds: [1, 2]", "seed: given 1 beside seeds [1, 2]; one of the two"),
        ("seeds: [1, 2, 1]", "seeds: given [1, 2, 1]; each seed once"),
        (
            "seeds: [0]\nsearch: {space: {fl.rounds: {grid: [3]}}, objectives: {fl/loss: min}, scheduler: asha}",
            "seeds: asha compares trials after each round, and a setting with several seeds has its results only when",
        ),
        ("seeds: [0, 1]\nsearch: {panel: [{seed: 2}]}", "search.panel.0: seed: given 2 beside seeds [0, 1]; one of"),
        (
            "data: {public_fraction: 0.5, auxiliary_fraction: 0.5}",
            "data.auxiliary_fraction: given 0.5 beside data.public_fraction 0.5; together they have to be below 1",
        ),
        ("fl: {strategy: fedsgd, local_epochs: 2}", "fl.local_epochs: given 2; with strategy fedsgd clients send one"),
        (
            "fl: {strategy: {name: krum, byzantine: 4}}",
            "fl.strategy: krum with byzantine 4 and keep 1 needs 11 clients per round; fl.clients and fl.cohort give 10",
        ),
        (
            "fl: {strategy: {name: krum, byzantine: 1, keep: 8}, clients: 80, cohort: 0.1}",
            "fl.strategy: krum with byzantine 1 and keep 8 needs 9 clients per round; fl.clients and fl.cohort give 8",
        ),
        (
            "fl: {strategy: {name: trimmed_mean, trim: 0.4}, clients: 2}",
            "fl.strategy: strategy trimmed_mean: trim 0.4 cuts 1 of 2 updates on each side and leaves none",
        ),
        ("fl: {clients: 4}\nresources: {workers: 5}", "resources.workers: given 5; a round is cut into 4 piece(s)"),
        ("fl: {cohort: 0.1}", "resources.workers: given 2; a round is cut into 1 piece(s)"),
        ("fl: {client_chunks: 1}", "resources.workers: given 2; a round is cut into 1 piece(s)"),
        ("resources: {gpus_per_worker: 1.5}", "resources.gpus_per_worker: given 1.5; above 1 it has to be a whole"),
        ("model: {name: lenet, norm: batch}", "model.norm: given 'batch'; model lenet allows: none"),
        ("defense: [none, latent]", "defense.0: given 'none' in a list of 2; 'none' is the undefended client, alone"),
        (
            "defense: [top_k, {name: latent, scope: public, client_steps: 9}]",
            "defense.1.client_steps: given 9; with scope public nothing is trained at the clients",
        ),
        (
            "defense: latent\nsearch: {panel: [{}, {defense.scope: public, defense.client_steps: 9}]}",
            "search.panel.1: defense.client_steps: given 9; with scope public",
        ),
    ],
)
def test_impossible_combinations(text: str, line: str, tmp_path: Path) -> None:
    (found,) = lines_of(f"experiment: x\n{text}\n", folder=tmp_path)
    assert found.startswith(line)


@pytest.mark.parametrize("size", [1, 4, 64])
def test_labels_are_recovered_for_every_batch_size(size: int, tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(f"experiment: x\naudit: {{labels: recovered, batch_size: {size}}}\n", encoding="utf-8")
    experiment, _ = load_experiment(file)
    assert (experiment.audit.labels, experiment.audit.batch_size) == ("recovered", size)


def test_a_setting_that_some_trials_read_is_no_mistake(tmp_path: Path) -> None:
    text = "defense: {name: latent, client_steps: 9}\nsearch: {space: {defense.scope: {grid: [client, public]}}}"
    (tmp_path / "e.yaml").write_text(f"experiment: x\n{text}\n", encoding="utf-8")
    experiment, raw = load_experiment(tmp_path / "e.yaml")
    assert experiment.search is not None
    # Each trial is checked once more where it runs.
    for overrides in (*experiment.search.panel, *corners(experiment.search.space)):
        check(with_overrides(raw, overrides))


@pytest.mark.parametrize(
    ("uri", "usable"),
    [
        ("sqlite:///mlflow.db", True),
        ("sqlite:////data/mlflow.db", True),
        ("postgresql://me:secret@host/runs", True),
        ("mysql+pymysql://host/runs", True),
        ("mssql+pyodbc://host/runs", True),
        ("http://server:5000", True),
        ("https://me:secret@server/mlflow", True),
        ("http://[::1]:5000", True),
        ("databricks", True),
        ("databricks://profile", True),
        ("", False),
        (" ", False),
        ("./mlruns", False),
        ("mlflow.db", False),
        ("file:///mlruns", False),
        ("htp://x", False),
        ("http:server", False),
        ("http://", False),
        ("http://server:port", False),
        ("http://[server", False),
        ("sqlite:mlflow.db", False),
        ("sqlite:///", False),
        ("postgres://host/runs", False),
        ("oracle://host/runs", False),
        ("databricksx", False),
    ],
)
def test_tracking_uris(uri: str, usable: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert (uri_fault(uri) is None) == usable
    text = "experiment: x\n"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    if usable or not uri:  # empty means unset
        (tmp_path / "e.yaml").write_text(text, encoding="utf-8")
        load_experiment(tmp_path / "e.yaml")
    else:
        (found,) = lines_of(text, folder=tmp_path)
        assert found.startswith(f"MLFLOW_TRACKING_URI: given {uri!r}; allowed: sqlite:///FILE, ")


def test_the_files_tracking_uri_hides_the_environments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    (tmp_path / "e.yaml").write_text("experiment: x\ntracking: {uri: http://server}\n", encoding="utf-8")
    assert load_experiment(tmp_path / "e.yaml")[0].tracking.uri == "http://server"


def test_all_mistakes_are_listed_at_once(tmp_path: Path) -> None:
    text = "experiment: a/b\nfl: {clients: 0, round: 2}\naudit: {victims: many}\n"
    found = lines_of(text, folder=tmp_path)
    assert [line.partition(":")[0] for line in found] == ["experiment", "fl.clients", "fl.round", "audit.victims"]


def test_the_usual_audits_fit_into_few_rounds() -> None:
    audits = {n: check({"experiment": "x", "fl": {"rounds": n}}).audit.round_numbers(n) for n in (1, 2, 3, 4, 5)}
    assert audits == {1: [0], 2: [0, 1], 3: [0, 1, 2], 4: [0, 1, 2, 3], 5: [0, 1, 2, 4]}


def search(text: str) -> str:
    return f"experiment: x\ndefense: latent\nsearch: {{{text}}}\n"


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
        ("panel: [{fl.clients: 1}]", "search.panel.0: resources.workers: given 2; a round is cut into 1 piece(s)"),
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
            ["defense=[latent, top_k]", "defense.keep=1"],
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
        "defense=latent",
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
    assert raw["defense"] == {"name": "latent", "strength": 2}
    assert repr(experiment.fl.build_strategy()) == "FedProx(server_lr=1.0, mu=0.01)"
    assert repr(experiment.data.build_partition()) == "Dirichlet(alpha=0.1, min_size=2)"
    assert experiment.audit.round_numbers(experiment.fl.rounds) == [0, 6]
    assert experiment.search is not None
    assert experiment.search.space == {"defense.strength": {"uniform": [1, 2]}}
    _, adaptive = experiment.audit.build_attacks()
    assert adaptive == Adaptive(inversion=DeepLeakage(steps=50), inverse=InverseTraining(steps=800))


def test_an_override_reaches_into_a_list_of_one_defence() -> None:
    raw: dict[str, Any] = {"defense": ["latent"]}
    set_key(raw, "defense.strength", 2.0)
    assert raw == {"defense": {"name": "latent", "strength": 2.0}}


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
        "defense": {"name": "latent", "strength": 2.0},
    }
    varied = with_overrides(
        raw,
        {
            "fl": {"clients": 3, "strategy": {"name": "fedavgm"}},
            "data": {"partition": {"kind": "iid"}},
            "audit": {"attacks": ["adaptive"]},
            "defense": {"name": "latent"},
            "model": {"width": 4},
            "fl.rounds": 4,
        },
    )
    assert varied == {
        "experiment": "x",
        "fl": {"rounds": 4, "clients": 3, "strategy": {"name": "fedavgm"}},
        "data": {"size": 32, "partition": {"kind": "iid"}},
        "audit": {"victims": 8, "attacks": ["adaptive"]},
        "defense": {"name": "latent"},
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
    varied = with_overrides(raw, {"defense.strength": 2.0, "defense": "latent", "fl.rounds": 4})
    assert varied == {"experiment": "x", "defense": {"name": "latent", "strength": 2.0}, "fl": {"rounds": 4}}
    assert raw == {"experiment": "x", "defense": {"name": "top_k", "keep": 0.5}, "fl": {"rounds": 3}}


def test_the_refusal_survives_the_way_out_of_a_worker() -> None:
    refusal = ConfigError(["fl.rounds: one", "seed: two", "seed: two"])
    again = pickle.loads(pickle.dumps(refusal))  # noqa: S301 - made here
    assert again.lines == refusal.lines == ("fl.rounds: one", "seed: two")
    assert str(again) == "fl.rounds: one\nseed: two"


def _setting(registry: Any, key: str = "name", leave_out: str | None = None) -> st.SearchStrategy[Any]:
    """A name, alone or with some of its options at their defaults."""

    def with_options(name: str) -> st.SearchStrategy[dict[str, Any]]:
        options = options_of(registry[name])
        keys = st.sets(st.sampled_from(sorted(options))) if options else st.just(set())
        return keys.map(lambda chosen: {key: name, **{k: options[k] for k in sorted(chosen)}})

    return st.sampled_from(sorted(set(registry) - {leave_out})).flatmap(lambda name: st.just(name) | with_options(name))


EXPERIMENTS = st.fixed_dictionaries(
    {"experiment": st.from_regex(r"[a-z][a-z0-9_.-]{0,10}", fullmatch=True).filter(lambda name: name != "cache")},
    optional={
        "data": st.fixed_dictionaries(
            {},
            optional={
                "name": st.sampled_from(["mni152", "npz:x.npz"]),
                "size": st.none() | st.integers(8, 512),
                "public_fraction": st.floats(0, 0.5, exclude_min=True),
                "auxiliary_fraction": st.floats(0, 0.5, exclude_min=True, exclude_max=True),
                "pool": st.booleans(),
                "partition": st.sampled_from(["iid", {"kind": "dirichlet", "alpha": 0.1}]),
            },
        ),
        "model": st.fixed_dictionaries(
            {}, optional={"name": st.sampled_from(sorted(MODELS)), "width": st.integers(1, 64)}
        ),
        "fl": st.fixed_dictionaries(
            {"clients": st.integers(20, 100)},
            optional={
                "strategy": _setting(STRATEGIES),
                "learning_rate": st.floats(1e-6, 10),
                "rounds": st.integers(1, 9),
            },
        ),
        "defense": _setting(DEFENSES) | st.lists(_setting(DEFENSES, leave_out="none"), min_size=1, max_size=3),
        "audit": st.fixed_dictionaries(
            {},
            optional={
                "rounds": st.lists(st.sampled_from([0, "middle", "last"]), min_size=1),
                "attacks": st.lists(
                    st.sampled_from(sorted(ATTACKS)) | st.just({"name": "adaptive", "inverse": {"steps": 5}})
                ),
                "balanced": st.booleans(),
            },
        ),
        "tracking": st.fixed_dictionaries({}, optional={"images": st.sampled_from([None, "none", "grid", "all"])}),
        "search": st.just({"panel": [{"fl.rounds": 3}], "objectives": {"utility/auc": "max"}}),
    },
)
SEED = st.integers(0, 2**63 - 1)
SEEDS = st.fixed_dictionaries({"seed": SEED}) | st.fixed_dictionaries(
    {"seeds": st.lists(SEED, min_size=1, unique=True)}
)


@given(EXPERIMENTS, st.just({}) | SEEDS)
@settings(deadline=None, max_examples=60)
def test_an_experiment_written_down_is_the_same_experiment(raw: dict[str, Any], seeds: dict[str, Any]) -> None:
    experiment = check(raw | seeds)
    written = experiment.model_dump(mode="json")
    assert check(written) == experiment
    assert check(parse(dump(written))) == experiment
    # Building it leaves nothing behind that a second build would see.
    assert experiment.build_defense() == check(written).build_defense()
    assert experiment.audit.build_attacks() == check(written).audit.build_attacks()


def test_what_is_written_down_names_the_seed_or_the_seeds() -> None:
    assert "seeds" not in check({"experiment": "x"}).model_dump()
    several = check({"experiment": "x", "seeds": [5, 2]})
    assert several.model_dump()["seeds"] == [5, 2]
    assert "seed" not in several.model_dump()
    assert check({"experiment": "x", "seed": 5, "seeds": []}) == check({"experiment": "x", "seed": 5})


def test_attacks_with_options_and_the_baseline_first() -> None:
    attacks = [
        "adaptive",
        "baseline",
        {"name": "adaptive", "inversion": {"name": "deep_leakage", "steps": 50}, "inverse": {"steps": 800}},
    ]
    audit = check({"experiment": "x", "audit": {"attacks": attacks}}).audit
    assert audit.attack_labels() == ["baseline", "adaptive", "adaptive_2"]
    assert audit.build_attacks()[1:] == [
        Adaptive(),
        Adaptive(inversion=DeepLeakage(steps=50), inverse=InverseTraining(steps=800)),
    ]


def test_a_mapping_is_as_good_as_a_file_and_stays_as_it_was() -> None:
    given = {"experiment": "x", "fl": {"rounds": 3}}
    experiment, raw = load_experiment(given, ["fl.rounds=4"])
    assert (experiment.fl.rounds, raw["fl"], given["fl"]) == (4, {"rounds": 4}, {"rounds": 3})


def test_images_keep_their_type() -> None:
    experiment = check({"experiment": "x", "tracking": {"images": "all"}})
    assert experiment.tracking.images is ImagePolicy.ALL
    assert check({"experiment": "x"}).tracking.images is None


@pytest.mark.parametrize("name", sorted(DEFENSES))
def test_options_are_the_fields_that_the_repr_shows(name: str) -> None:
    cls = DEFENSES[name]
    made = build(cls, {})
    shown = ", ".join(f"{key}={value!r}" for key, value in options_of(cls).items())
    assert repr(made) == f"{cls.__name__}({shown})"
    assert build(cls, options_of(cls)) == made


def test_an_experiment_cannot_be_changed() -> None:
    experiment: Any = check({"experiment": "x"})
    with pytest.raises(ValueError, match="frozen"):
        experiment.seed = 3
    assert isinstance(experiment, Experiment)
