from __future__ import annotations

from pathlib import Path

import pytest
from mistakes import lines_of

from fedveil.defense import DEFENSES
from fedveil.defense.inverse.learnt import InverseTraining
from fedveil.orchestrator.config import check, load_experiment, with_overrides
from fedveil.orchestrator.config.options import options_of
from fedveil.orchestrator.config.space import corners

LATENT_KEYS = (
    "adversary_steps, client_steps, error_cap, privacy_weight, public_steps, scope, steps, strength, utility_weight"
)
DEFENSE_NAMES = ", ".join(sorted(DEFENSES))


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
        (
            "defense: [{name: latent, k: 5}, group_mean]",
            "defense: latent, group_mean each make one image of many; allowed: one such in a list",
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
