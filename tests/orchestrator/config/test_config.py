from __future__ import annotations

from pathlib import Path

import pytest
from mistakes import lines_of

from fedveil.fl.optimizers import SGD, Adam
from fedveil.orchestrator.config import check, load_experiment, with_overrides
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
        (
            "fl: {quorum: 0}",
            "fl.quorum: given 0; it is a share of the clients, not their number: above 0 and at most 1",
        ),
        (
            "fl: {quorum: 1.5}",
            "fl.quorum: given 1.5; it is a share of the clients, not their number: above 0 and at most 1",
        ),
        ("fl: {max_update_norm: 0}", "fl.max_update_norm: given 0; allowed: above 0"),
        ("fl: {max_update_norm: .inf}", "fl.max_update_norm: given inf; allowed: a finite number"),
        (
            "fl: {cohort: 1.5}",
            "fl.cohort: given 1.5; it is a share of the clients, not their number: above 0 and at most 1",
        ),
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
