"""Choosing an attack's weights on other victims: the attacker's own auxiliary images, never the clients'."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fedveil.attacks.base import Knowledge, Observation
from fedveil.attacks.matching.attack import Visible
from fedveil.attacks.scoring import match
from fedveil.attacks.target.elementary import Elementary
from fedveil.defense.base import Surrogate
from fedveil.fl.hooks import NoHooks
from fedveil.fl.messages import ClientUpdate, Reconstruction
from fedveil.fl.seeding import torch_stream
from fedveil.fl.training import LocalTraining, exchanged, local_update

FACTORS = (0.1, 1.0, 10.0)
OWN_VICTIMS = 8


class _Surrogate(NoHooks):
    """The defence as the attacker knows it, in front of its own training."""

    def __init__(self, surrogate: Surrogate) -> None:
        self._surrogate = surrogate

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        return x if self._surrogate.data is None else self._surrogate.data(x, y, stream)

    def update(self, update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
        return update if self._surrogate.update is None else self._surrogate.update(update, stream)


@runtime_checkable
class Inversion(Protocol):
    """An attack that inverts updates by matching gradients under a prior of smoothness."""

    def invert(
        self, observations: Sequence[Observation], knowledge: Knowledge, visible: Visible | None = None
    ) -> list[Reconstruction]:
        """Invert all observations, matching only the entries that are ``visible``, if given."""

    def smoothed(self, factor: float) -> Inversion:
        """The same with ``factor`` times the weight of total variation."""


def tuned(inversion: Inversion, like: Observation, surrogate: Surrogate, knowledge: Knowledge) -> Inversion:
    """Return the attack with the total-variation weight that inverts defended updates of auxiliary images best.

    A stronger image prior sees through noise on updates, a weaker one keeps detail where there is little of it. Which
    holds is settled by trying `FACTORS` times the weight on updates that the attacker makes itself, with the client's
    own training function, the same weights and the defence as it knows it. With fewer auxiliary images than one update
    has behind it, the weight stays as it is.

    Args:
        inversion: the attack to tune.
        like: an observation, for weights, batch size and the protocol.
        surrogate: the defence as the attacker knows it.
        knowledge: with auxiliary images.
    """
    made = _own_updates(like, surrogate, knowledge)
    if not made:
        return inversion
    observations = [observation for observation, _ in made]
    errors: dict[float, float] = {}
    for factor in FACTORS:
        found = inversion.smoothed(factor).invert(observations, knowledge, surrogate.visible)
        errors[factor] = sum(
            float((f.images[match(f.images, trained)] - trained).square().mean())
            for f, (_, trained) in zip(found, made, strict=True)
        )
    return inversion.smoothed(min(errors, key=errors.__getitem__))


def _own_updates(like: Observation, surrogate: Surrogate, knowledge: Knowledge) -> list[tuple[Observation, Tensor]]:
    """Return updates of auxiliary images as the attacker observes them, each with what was trained on."""
    auxiliary = knowledge.auxiliary_images()
    stream = torch_stream(knowledge.seed, "tuning")
    model = _trainable(knowledge, like.update)
    weights = {**exchanged(model), **like.weights}
    spec = LocalTraining(
        kind=like.update.kind,
        epochs=like.update.local_steps,
        batch_size=like.batch_size,
        learning_rate=like.update.learning_rate,
        mode=knowledge.model.mode,
        optimizer=like.update.optimizer,
    )
    order = torch.randperm(len(auxiliary), generator=stream)
    made = []
    whole = [indices for indices in order.split(like.batch_size) if len(indices) == like.batch_size]
    for number, indices in enumerate(whole[:OWN_VICTIMS]):
        batch = auxiliary.take(indices)
        seen: list[Tensor] = []

        def note(trained: Tensor, at: Tensor, seen: list[Tensor] = seen) -> None:
            seen.append(trained[at.argsort()].cpu())

        with Elementary():
            result = local_update(model, weights, batch, _Surrogate(surrogate), spec, stream, on_batch=note)
        own = replace(like, number=number, client=-1, update=result.update, weights=weights, labels=batch.labels)
        made.append((own, torch.stack(seen).mean(dim=0)))
    return made


def _trainable(knowledge: Knowledge, update: ClientUpdate) -> nn.Module:
    """A copy of the model to train on, in which those parameters learn that the client's update holds."""
    model = copy.deepcopy(knowledge.model.module).to(knowledge.device)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in update.tensors)
    return model
