from __future__ import annotations

from pathlib import Path

import pytest
from mistakes import lines_of

from fedveil.defense import DEFENSES
from fedveil.defense.inverse.learnt import InverseTraining
from fedveil.fl.optimizers import SGD, Adam
from fedveil.orchestrator.config import check, load_experiment, with_overrides
from fedveil.orchestrator.config.options import options_of
from fedveil.orchestrator.config.space import corners
from fedveil.orchestrator.config.training import FLSection
from fedveil.orchestrator.config.uri import uri_fault

DESIGN = """
experiment: pneumonia-minimax
data: {name: pneumoniamnist, partition: {kind: dirichlet, alpha: 0.5}}
model: {name: convnet}
fl: {clients: 10, rounds: 20, local_epochs: 1, batch_size: 32, strategy: fedavg}
defense: {name: latent_autoencoder, strength: 1.0, privacy_weight: 1.0, utility_weight: 1.0}
audit: {rounds: [0, 1, middle, last], victims: 64, batch_size: 1, attacks: [inverting_gradients, adaptive]}
search:
  space: {defense.strength: {loguniform: [0.1, 4]}, defense.privacy_weight: {loguniform: [0.1, 10]}}
  samples: 24
  searcher: optuna
  objectives: {utility/accuracy: max, privacy/mse: max}
resources: {workers: 2, cpus_per_worker: 1, gpus_per_worker: 0}
"""
SECTIONS = (
    "audit, data, defense, experiment, fl, model, plugins, references, resources, runs_dir, search, seed, seeds,"
    " tracking"
)
FL_KEYS = ", ".join(sorted(FLSection.model_fields))
LATENT_KEYS = (
    "adversary_steps, client_steps, error_cap, privacy_weight, public_steps, scope, steps, strength, utility_weight"
)
DEFENSE_NAMES = ", ".join(sorted(DEFENSES))
NAME_RULE = "allowed: up to 100 letters, digits, '_', '-' and '.', a letter or digit first"
DEFENSE_RULE = "allowed: a name, {name: NAME, option: value}, or a list of these"


def test_the_example_of_the_design_is_valid_as_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(DESIGN, encoding="utf-8")
    experiment, raw = load_experiment(file)
    assert experiment.experiment == "pneumonia-minimax"
    assert repr(experiment.build_defense()).startswith("LatentAutoencoder(strength=1.0, privacy_weight=1.0")
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
        ("fl: {local_steps: 0}", "fl.local_steps: given 0; allowed: 1 or more"),
        ("fl: {replay_public: 1}", "fl.replay_public: given 1; allowed: below 1.0"),
        ("fl: {augmentation: flip}", "fl.augmentation: given 'flip'; allowed: a list such as [a, b]"),
        ("fl: {augmentation: [3]}", "fl.augmentation.0: given 3; allowed: text"),
        ("fl: {quorum: 0}", "fl.quorum: given 0; allowed: above 0"),
        ("fl: {quorum: 1.5}", "fl.quorum: given 1.5; allowed: at most 1.0"),
        ("fl: {max_update_norm: 0}", "fl.max_update_norm: given 0; allowed: above 0"),
        ("fl: {max_update_norm: .inf}", "fl.max_update_norm: given inf; allowed: a finite number"),
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
        ("defense: [[latent_autoencoder]]", f"defense: given [['latent_autoencoder']]; {DEFENSE_RULE}"),
        (
            "defense: {name: latent_autoencoder, 3: 2}",
            f"defense: given {{'name': 'latent_autoencoder', 3: 2}}; {DEFENSE_RULE}",
        ),
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
        ("defense: [none, {name: latent_autoencoder, k: 2}]", f"defense.1.k: unknown key; allowed: {LATENT_KEYS}"),
        (
            "defense: {name: latent_autoencoder, public_models: 1}",
            f"defense.public_models: unknown key; allowed: {LATENT_KEYS}",
        ),
        ('defense: {name: latent_autoencoder, strength: "1"}', "defense.strength: given '1'; allowed: a number"),
        ("defense: {name: latent_autoencoder, strength: true}", "defense.strength: given true; allowed: a number"),
        (
            "defense: {name: latent_autoencoder, strength: .nan}",
            "defense.strength: given nan; allowed: a finite number",
        ),
        (
            "defense: {name: latent_autoencoder, strength: -1}",
            "defense.strength: given -1.0; it has to be above 0 and finite",
        ),
        ("defense: {name: latent_autoencoder, steps: 1.5}", "defense.steps: given 1.5; allowed: a whole number"),
        (
            "defense: {name: latent_autoencoder, scope: both}",
            "defense.scope: given 'both'; allowed: 'client' or 'public'",
        ),
        (
            "defense: [latent_autoencoder, {name: top_k, keep: 2}]",
            "defense.1.keep: given 2.0; it has to be above 0 and at most 1",
        ),
        (
            "fl: {strategy: foo}",
            "fl.strategy.name: given 'foo'; allowed: fedadam, fedavg, fedprox, fedsgd, krum, median",
        ),
        ("fl: {optimizer: foo}", "fl.optimizer.name: given 'foo'; allowed: adam, sgd"),
        ("fl: {optimizer: {momentum: 0.9}}", "fl.optimizer.name: is missing; allowed: adam, sgd"),
        ("fl: {optimizer: {name: adam, momentum: 0.9}}", "fl.optimizer.momentum: unknown key; allowed: weight_decay"),
        (
            "fl: {optimizer: {name: sgd, momentum: 1}}",
            "fl.optimizer.momentum: given 1.0; it must be at least 0 and below 1",
        ),
        (
            "fl: {augmentation: [flip, turn]}",
            "fl.augmentation.1: given 'turn'; allowed: flip, shift, transpose, each once",
        ),
        ("fl: {augmentation: [flip, flip]}", "fl.augmentation.1: given 'flip'; allowed: flip, shift, transpose, each"),
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
        ("defense: dp_sgd", "fl.sampling: given 'shuffled'; defense: dp_sgd needs 'poisson'"),
        (
            "defense: [top_k, dp_sgd]\nfl: {sampling: poisson}\nmodel: {norm: batch}",
            "model.norm: defense: dp_sgd does not go with 'batch', which mixes images; allowed: group, none",
        ),
        (
            "defense: dp_sgd\nfl: {sampling: poisson}\nmodel: {name: resnet20, norm: batch}",
            "model.norm: defense: dp_sgd does not go with 'batch', which mixes images; allowed: group",
        ),
        (
            "fl: {sampling: poisson, replay_public: 0.5}",
            "fl.replay_public: given 0.5; with fl.sampling 'poisson' it has to be 0",
        ),
        (
            "defense: {name: secure_aggregation, clients: 5}\nfl: {strategy: median}",
            "fl.strategy: median looks at each update by itself; the defence shows sums alone",
        ),
        (
            "defense: [top_k, {name: secure_aggregation, clients: 5}]\nfl: {max_update_norm: 2}",
            "fl.max_update_norm: given 2; of sums alone no client's norm is seen: leave it out",
        ),
        (
            "defense: {name: secure_aggregation, clients: 5}\nfl: {cohort: 0.4}",
            "defense: a sum of 5 clients; a round has 4 (fl.clients, fl.cohort) and 10 are audited (audit.clients)",
        ),
        (
            "defense: {name: secure_aggregation, clients: 5}\naudit: {victims: 8, batch_size: 2}",
            "audit.victims: given 8; a sum of 5 clients holds 10 images",
        ),
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
        ("fl: {strategy: fedsgd, local_steps: 2}", "fl.local_steps: given 2; with strategy fedsgd clients send one"),
        (
            "fl: {strategy: fedsgd, optimizer: adam}",
            "fl.optimizer: given {'name': 'adam'}; with strategy fedsgd clients send one gradient, allowed: sgd without",
        ),
        (
            "fl: {strategy: fedsgd, optimizer: {name: sgd, momentum: 0.9}}",
            "fl.optimizer: given {'name': 'sgd', 'momentum': 0.9}; with strategy fedsgd clients send one gradient",
        ),
        (
            "fl: {local_epochs: 1, local_steps: 50}",
            "fl.local_steps: given 50 beside fl.local_epochs 1; one of the two ('null' is neither)",
        ),
        (
            "fl: {local_steps: 2}\naudit: {observations: 41}",
            "audit.observations: given 41; clients train on each image 40 time(s) (fl.rounds times fl.local_steps);",
        ),
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
        ("resources: {workers: 2}\nfl: {cohort: 0.1}", "resources.workers: given 2; a round is cut into 1 piece(s)"),
        (
            "resources: {workers: 2}\nfl: {client_chunks: 1}",
            "resources.workers: given 2; a round is cut into 1 piece(s)",
        ),
        ("resources: {gpus_per_worker: 1.5}", "resources.gpus_per_worker: given 1.5; above 1 it has to be a whole"),
        ("model: {name: lenet, norm: batch}", "model.norm: given 'batch'; model lenet allows: none"),
        (
            "defense: [none, latent_autoencoder]",
            "defense.0: given 'none' in a list of 2; 'none' is the undefended client, alone",
        ),
        (
            "defense: [top_k, {name: latent_autoencoder, scope: public, client_steps: 9}]",
            "defense.1.client_steps: given 9; with scope public nothing is trained at the clients",
        ),
        (
            "defense: latent_autoencoder\nsearch: {panel: [{}, {defense.scope: public, defense.client_steps: 9}]}",
            "search.panel.1: defense.client_steps: given 9; with scope public",
        ),
        (
            "audit: {membership: true}\ndefense: [mixup, sign]",
            "audit.membership: given true; the defence mixes a client's images, which no attack here takes apart",
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
    text = "defense: {name: latent_autoencoder, client_steps: 9}\nsearch: {space: {defense.scope: {grid: [client, public]}}}"
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
        ("sqlite:////tmp/mlflow.db", True),
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


def test_clients_make_one_pass_unless_steps_or_passes_are_given() -> None:
    def given(**fl: object) -> tuple[int | None, int | None]:
        found = check({"experiment": "x", "fl": fl}).fl
        return found.epochs, found.local_steps

    assert given() == (1, None)
    assert given(local_epochs=3) == (3, None)
    assert given(local_steps=50) == (None, 50)
    assert given(local_epochs=None, local_steps=50) == (None, 50)


def test_the_clients_optimiser_is_written_as_the_strategy_is() -> None:
    raw = {"experiment": "x", "fl": {"optimizer": "sgd"}}
    assert check(raw).fl.build_optimizer() == SGD()
    varied = with_overrides(raw, {"fl.optimizer.momentum": 0.9})
    assert check(varied).fl.build_optimizer() == SGD(momentum=0.9)
    # What it names brings its own options.
    assert check(with_overrides(varied, {"fl.optimizer": "adam"})).fl.build_optimizer() == Adam()


def test_all_mistakes_are_listed_at_once(tmp_path: Path) -> None:
    text = "experiment: a/b\nfl: {clients: 0, round: 2}\naudit: {victims: many}\n"
    found = lines_of(text, folder=tmp_path)
    assert [line.partition(":")[0] for line in found] == ["experiment", "fl.clients", "fl.round", "audit.victims"]


def test_the_usual_audits_fit_into_few_rounds() -> None:
    audits = {n: check({"experiment": "x", "fl": {"rounds": n}}).audit.round_numbers(n) for n in (1, 2, 3, 4, 5)}
    assert audits == {1: [0], 2: [0, 1], 3: [0, 1, 2], 4: [0, 1, 2, 3], 5: [0, 1, 2, 4]}
