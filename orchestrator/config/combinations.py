"""Settings that are fine one by one and impossible together."""

from __future__ import annotations

import torch

from fedveil.defense import DEFENSES, Stack
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import UpdateKind
from fedveil.fl.models import MODELS
from fedveil.fl.strategies import Krum
from fedveil.fl.strategies.robust import CoordinatewiseStrategy
from fedveil.orchestrator.config.explain import listed, shown
from fedveil.orchestrator.config.schema import Experiment, ResourcesSection
from fedveil.orchestrator.config.training import DataSection, FLSection, ModelSection

ENOUGH = 10_000
"""Clients from which on no share of them rounds to nothing."""


def conflicts(experiment: Experiment) -> list[str]:
    """Return what is wrong with an experiment whose settings have all passed by themselves, one line each."""
    return [
        *_seeds(experiment),
        *_data(experiment.data),
        *_private_classes(experiment),
        *_model(experiment.model),
        *_federation(experiment),
        *_audit(experiment),
        *_resources(experiment.resources),
        *_defenses(experiment),
    ]


def _defenses(experiment: Experiment) -> list[str]:
    fl, model, lines = experiment.fl, experiment.model, []
    norms: tuple[str, ...] = getattr(MODELS[model.name], "norms", ())
    norm = model.norm or (norms[0] if norms else None)
    for part in experiment.defense:
        chosen, given = DEFENSES[part["name"]], f"defense: {part['name']}"
        if chosen.sampling not in (None, fl.sampling):
            lines.append(f"fl.sampling: given {fl.sampling!r}; {given} needs {chosen.sampling!r}")
        if norm == "batch" and not chosen.batch_norm:
            others = listed([one for one in norms if one != "batch"])
            lines.append(f"model.norm: {given} does not go with 'batch', which mixes images; allowed: {others}")
    built = experiment.build_defense()
    if experiment.audit.membership and built.mixes:
        lines.append(
            "audit.membership: given true; the defence mixes a client's images, which no attack here takes apart by whose"
            " they are: leave it out"
        )
    lines += _sums(experiment)
    if isinstance(built, Stack):
        lines += [f"defense: {line}" for line in built.conflicts()]
        lines += [
            f"defense.{index}: given 'none' in a list of {len(experiment.defense)}; 'none' is the undefended client, alone"
            for index, part in enumerate(experiment.defense)
            if part["name"] == "none"
        ]
    return lines


def idle(experiment: Experiment) -> list[str]:
    """Return the settings that are given although nothing reads them, one line each."""
    parts = experiment.defense
    lines = []
    for index, part in enumerate(parts):
        if part.get("scope") == "public" and "client_steps" in part:
            where = "defense" if len(parts) == 1 else f"defense.{index}"
            lines.append(
                f"{where}.client_steps: given {shown(part['client_steps'])}; with scope public nothing is trained at"
                " the clients: leave it out, or set scope to client"
            )
    return lines


def _seeds(experiment: Experiment) -> list[str]:
    seeds, search = experiment.seeds, experiment.search
    lines = []
    if seeds and "seed" in experiment.model_fields_set:
        lines.append(
            f"seed: given {experiment.seed} beside seeds {shown(seeds)}; one of the two ('seeds: []' is none of them)"
        )
    if len(set(seeds)) < len(seeds):
        lines.append(f"seeds: given {shown(seeds)}; each seed once")
    if seeds and search is not None and search.scheduler == "asha":
        lines.append(
            "seeds: asha compares trials after each round, and a setting with several seeds has its results only when the"
            " last of them is done; give one seed, or set search.scheduler to none"
        )
    return lines


def _data(data: DataSection) -> list[str]:
    public, auxiliary = data.public_fraction, data.auxiliary_fraction
    rule = "together they have to be below 1, to leave images to the clients"
    given = f"data.auxiliary_fraction: given {auxiliary} beside data.public_fraction {public}"
    return [f"{given}; {rule}"] if public + auxiliary >= 1 else []


def _private_classes(experiment: Experiment) -> list[str]:
    private = experiment.data.private_classes
    if private is None:
        return []
    lines = []
    if len(set(private)) < len(private):
        lines.append(f"data.private_classes: given {shown(private)}; each class once")
    if not experiment.audit.model_inversion:
        lines.append(
            f"data.private_classes: given {shown(private)}; the other classes' images are for the attacks of"
            " audit.model_inversion, which has none: list one, or leave the classes out"
        )
    return lines


def _model(model: ModelSection) -> list[str]:
    # A user's own classifier need not have either setting.
    chosen = MODELS[model.name]
    norms: tuple[str, ...] = getattr(chosen, "norms", ())
    lines = []
    if model.norm is not None and model.norm not in norms:
        rule = f"allows: {listed(norms)}" if norms else "has no such setting"
        lines.append(f"model.norm: given {model.norm!r}; model {model.name} {rule}")
    if model.width is not None and not hasattr(chosen, "default_width"):
        lines.append(f"model.width: given {model.width}; model {model.name} has no such setting")
    return lines


def _federation(experiment: Experiment) -> list[str]:
    fl, workers = experiment.fl, experiment.resources.workers
    lines: list[str] = []
    strategy = fl.build_strategy()
    if fl.local_epochs is not None and fl.local_steps is not None:
        lines.append(
            f"fl.local_steps: given {fl.local_steps} beside fl.local_epochs {fl.local_epochs}; one of the two ('null' is"
            " neither)"
        )
    if fl.sampling == "poisson" and fl.replay_public:
        lines.append(f"fl.replay_public: given {fl.replay_public:g}; with fl.sampling 'poisson' it has to be 0")
    if strategy.local_kind is UpdateKind.GRADIENT:
        lines += _gradient_alone(fl)
    if isinstance(strategy, Krum):
        needed = max(2 * strategy.byzantine + 3, strategy.keep + strategy.byzantine)
        if fl.cohort_size < needed:
            lines.append(
                f"fl.strategy: krum with byzantine {strategy.byzantine} and keep {strategy.keep} needs {needed} clients"
                f" per round; fl.clients and fl.cohort give {fl.cohort_size}"
            )
    if isinstance(strategy, CoordinatewiseStrategy):
        try:
            strategy.centre(torch.zeros(min(fl.cohort_size, ENOUGH)))
        except FedveilError as error:
            lines.append(f"fl.strategy: {error} (fl.clients, fl.cohort)")
    if workers is not None and workers > fl.pieces:
        lines.append(
            f"resources.workers: given {workers}; a round is cut into {fl.pieces} piece(s) (fl.client_chunks, clients per"
            f" round), more workers would idle; allowed: 1 to {fl.pieces}, or null for as many as there is room for"
        )
    return lines


def _gradient_alone(fl: FLSection) -> list[str]:
    """Return what clients can't do that send a gradient and take no step."""
    rule = f"with strategy {fl.strategy['name']} clients send one gradient"
    lines = [
        f"fl.{key}: given {count}; {rule}, allowed: 1"
        for key, count in (("local_epochs", fl.local_epochs), ("local_steps", fl.local_steps))
        if count not in (None, 1)
    ]
    if not fl.build_optimizer().plain(2):
        lines.append(f"fl.optimizer: given {shown(fl.optimizer)}; {rule}, allowed: sgd without momentum and decay")
    return lines


def _audit(experiment: Experiment) -> list[str]:
    fl, audit = experiment.fl, experiment.audit
    lines = [
        f"audit.rounds: given {number}; allowed: 0 to {fl.rounds - 1} (fl.rounds - 1), middle, last"
        for number in audit.rounds or ()
        if isinstance(number, int) and number >= fl.rounds
    ]
    if audit.victims % audit.batch_size:
        lines.append(
            f"audit.victims: given {audit.victims}; has to be a multiple of audit.batch_size {audit.batch_size}"
        )
    # How many passes some steps make is known of each shard alone; none sees an image twice in a step.
    key, passes = ("local_epochs", fl.epochs) if fl.epochs is not None else ("local_steps", fl.local_steps)
    most = fl.rounds * (passes or 1)
    if audit.observations > most:
        lines.append(
            f"audit.observations: given {audit.observations}; clients train on each image {most} time(s) (fl.rounds times"
            f" fl.{key}); allowed: 1 to {most}"
        )
    if audit.clients is not None and audit.clients > fl.clients:
        lines.append(f"audit.clients: given {audit.clients}; allowed: 1 to {fl.clients} (fl.clients)")
    return lines


def _sums(experiment: Experiment) -> list[str]:
    """Of a defence that shows the server sums alone."""
    summed, fl, audit = experiment.build_defense().summed, experiment.fl, experiment.audit
    if summed == 1:
        return []
    lines = []
    strategy = fl.build_strategy()
    if strategy.needs_single_updates:
        lines.append(f"fl.strategy: {strategy.name} looks at each update by itself; the defence shows sums alone")
    if fl.max_update_norm is not None:
        lines.append(
            f"fl.max_update_norm: given {fl.max_update_norm:g}; of sums alone no client's norm is seen: leave it out"
        )
    there = min(fl.cohort_size, audit.clients or fl.clients)
    if summed > there:
        lines.append(
            f"defense: a sum of {summed} clients; a round has {fl.cohort_size} (fl.clients, fl.cohort) and"
            f" {audit.clients or fl.clients} are audited (audit.clients)"
        )
    if audit.victims < summed * audit.batch_size:
        lines.append(
            f"audit.victims: given {audit.victims}; a sum of {summed} clients holds {summed * audit.batch_size} images"
        )
    return lines


def _resources(resources: ResourcesSection) -> list[str]:
    gpus = resources.gpus_per_worker
    if gpus > 1 and gpus != int(gpus):
        return [f"resources.gpus_per_worker: given {gpus:g}; above 1 it has to be a whole number"]
    return []
