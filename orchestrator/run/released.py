"""The finished model is released: its answers pass what the defence makes of them, and attackers look into it.

What the attacks do knows nothing of slots: `fedveil.attacks.model_inversion.audit`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedveil.attacks.model_inversion.audit import (
    InversionReport,
    Outcome,
    attack_released,
    labels_of,
    priors_of,
    report_on,
)
from fedveil.attacks.model_inversion.base import ModelInversion
from fedveil.attacks.model_inversion.gan import Gan, GanTraining, public_gan
from fedveil.attacks.model_inversion.released import ReleasedModel
from fedveil.attacks.model_inversion.scoring import InversionScorer, InversionVictims, build_inversion_scorer
from fedveil.attacks.scoring.victims import VictimBatch
from fedveil.defense.base import Defense, DefenseContext, PreparedDefense
from fedveil.defense.guard import Guard
from fedveil.defense.stack import makes_guard
from fedveil.fl.data.images import Images
from fedveil.fl.data.subsets import stratified
from fedveil.fl.executor import Executor, Slot
from fedveil.fl.models import ModelSpec, build_model
from fedveil.fl.rounds import Federation, ServerState
from fedveil.fl.seeding import derive_seed, torch_stream
from fedveil.fl.training import Weights, load_exchanged
from fedveil.orchestrator.config import Experiment
from fedveil.orchestrator.run.setup import ReleaseImages, Setup


def release(
    experiment: Experiment,
    federation: Federation,
    context: DefenseContext,
    public: Any,
    state: ServerState,
    executor: Executor,
) -> tuple[Federation, dict[str, float]]:
    """Let the defence make what the finished model's answers pass (`Defense.guard`), and put it behind clients' hooks.

    Args:
        experiment: what is run.
        federation: with the clients' prepared defences.
        context: for the defence.
        public: what the defence learnt on public images.
        state: after the last round.
        executor: where to learn.

    Returns:
        The federation as it answers from now on, and what there is to say of it, ``defense/<name>`` each.
    """
    defense = experiment.build_defense()
    if not makes_guard(defense):
        return federation, {}
    (guard,) = executor.map(_guard, [defense], shared=(federation.model, state.weights, context, public))
    if guard is None:
        return federation, {}
    clients = []
    for client in federation.clients:
        hooks = client.hooks.get()
        assert isinstance(hooks, PreparedDefense)  # `build_federation` has put it there
        clients.append(replace(client, hooks=executor.broadcast(guard.behind(hooks))))
    told = {f"defense/{key}": value for key, value in guard.diagnostics().items()}
    return replace(federation, clients=tuple(clients)), told


def measure_inversion(
    experiment: Experiment,
    setup: Setup,
    images: ReleaseImages,
    federation: Federation,
    state: ServerState,
    executor: Executor,
    *,
    cache: Path | None,
) -> InversionReport:
    """Attack the released model, an attack per slot.

    It is the server's model, which is asked about images as they are, behind the first client's ``output`` hook; where
    these hooks differ from client to client, that one stands for all.

    Args:
        experiment: what is run.
        setup: its images.
        images: the attacker's and the judge's.
        federation: from `release`.
        state: after the last round.
        executor: where to attack.
        cache: folder for judges and generators.
    """
    attacks, seed = experiment.audit.build_model_inversions(), derive_seed(experiment.seed, "model inversion")
    classes, attacker = len(setup.data.classes), executor.broadcast(images.attacker)
    judged = (images.judged, setup.untouched, classes, experiment.seed, cache)
    (scorer,) = executor.map(_make_scorer, [None], shared=judged)
    priors = priors_of(attacks)
    gans = dict(zip(priors, executor.map(_make_gan, priors, shared=(attacker, seed, cache)), strict=True))
    victims = _victims(setup.victims, setup.data.test, experiment.seed)
    shared = (federation, state.weights, attacker, victims, scorer, gans, seed)
    outcomes = executor.map(_attack, list(zip(attacks, labels_of(attacks), strict=True)), shared=shared)
    target = _released(federation, state.weights, torch.device("cpu"))
    return report_on(attacks, outcomes, target, images.attacker, victims, scorer)


def _victims(batches: tuple[VictimBatch, ...], test: Images, seed: int) -> InversionVictims:
    """The victims of the other audits, and as many test images."""
    pixels, labels = zip(*((batch.images.pixels, batch.images.labels) for batch in batches), strict=True)
    members = Images(torch.cat(pixels), torch.cat(labels))
    count = min(len(test), max(len(members), len(test.labels.unique())))
    drawn = stratified(test.labels, count, torch_stream(seed, "model inversion", "outsiders"))
    return InversionVictims(members, test.take(drawn))


def _released(federation: Federation, weights: Weights, device: torch.device) -> ReleasedModel:
    hooks = federation.clients[0].hooks.get()
    assert isinstance(hooks, PreparedDefense)
    spec = federation.model
    network = _finished(spec, weights, device)
    return ReleasedModel(network, hooks.output if hooks.changes("output") else None, spec.image_shape, spec.classes)


def _finished(spec: ModelSpec, weights: Weights, device: torch.device) -> nn.Module:
    model = build_model(spec).to(device)
    load_exchanged(model, weights)
    return model.eval().requires_grad_(False)


def _guard(
    slot: Slot, defense: Defense[Any], spec: ModelSpec, weights: Weights, context: DefenseContext, public: Any
) -> Guard | None:
    return defense.guard(_finished(spec, weights, slot.device), replace(context, device=slot.device), public)


def _make_scorer(
    slot: Slot, _: None, judged: Images, untouched: Images, classes: int, seed: int, cache: Path | None
) -> InversionScorer:
    return build_inversion_scorer(judged, untouched, classes=classes, seed=seed, device=slot.device, cache=cache)


def _make_gan(slot: Slot, training: GanTraining, attacker: Images, seed: int, cache: Path | None) -> Gan:
    return public_gan(attacker, training, seed=seed, device=slot.device, cache=cache)


def _attack(
    slot: Slot,
    attack: tuple[ModelInversion, str],
    federation: Federation,
    weights: Weights,
    attacker: Images,
    victims: InversionVictims,
    scorer: InversionScorer,
    gans: Mapping[GanTraining, Gan],
    seed: int,
) -> Outcome:
    target = _released(federation, weights, slot.device)
    return attack_released(*attack, target, attacker, victims, scorer, gans, seed=seed, device=slot.device)
