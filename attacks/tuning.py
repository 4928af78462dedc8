"""Choosing an attack's weights on other victims: the attacker's own public images, never the clients'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedveil.attacks.base import Knowledge, Observation
from fedveil.attacks.inverting_gradients import InvertingGradients, target_gradient
from fedveil.attacks.scoring import match
from fedveil.defense.base import Surrogate
from fedveil.fl.hooks import NoHooks
from fedveil.fl.messages import ClientUpdate
from fedveil.fl.models import build_model
from fedveil.fl.seeding import torch_stream
from fedveil.fl.training import LocalTraining, local_update

FACTORS = (0.1, 1.0, 10.0)
REHEARSAL_VICTIMS = 8


class _Played(NoHooks):
    """The defence as the attacker plays it to himself."""

    def __init__(self, surrogate: Surrogate) -> None:
        self._surrogate = surrogate

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        return x if self._surrogate.data is None else self._surrogate.data(x, stream)

    def update(self, update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
        return update if self._surrogate.update is None else self._surrogate.update(update, stream)


@dataclass(frozen=True)
class _Rehearsed:
    observation: Observation
    trained: Tensor


def visible_masks(observations: Sequence[Observation], surrogate: Surrogate) -> list[dict[str, Tensor]] | None:
    """Return, per observation, the masks of the update's entries that tell anything; None where all do."""
    if surrogate.visible is None:
        return None
    return [surrogate.visible(target_gradient(observation.update)) for observation in observations]


def best_tv(inversion: InvertingGradients, like: Observation, surrogate: Surrogate, knowledge: Knowledge) -> float:
    """Return the total-variation weight that inverts defended updates of public images best.

    A stronger image prior sees through noise on updates, a weaker one keeps detail where there is little of it. Which
    holds is settled by trying `FACTORS` times the weight on updates that the attacker makes himself, with the client's
    own training function, the same weights and the defence as he knows it. With fewer public images than one update
    has behind it, the weight stays as it is.

    Args:
        inversion: the attack to tune.
        like: an observation, for weights, batch size and the protocol.
        surrogate: the defence as the attacker knows it.
        knowledge: with public images.
    """
    rehearsed = _rehearse_updates(like, surrogate, knowledge)
    if not rehearsed:
        return inversion.tv
    observations = [r.observation for r in rehearsed]
    masks = visible_masks(observations, surrogate)
    errors: dict[float, float] = {}
    for factor in FACTORS:
        tuned = replace(inversion, tv=inversion.tv * factor)
        found = tuned.invert(observations, knowledge, masks)
        errors[tuned.tv] = sum(
            float((f.images[match(f.images, r.trained)] - r.trained).square().mean())
            for f, r in zip(found, rehearsed, strict=True)
        )
    return min(errors, key=errors.__getitem__)


def _rehearse_updates(like: Observation, surrogate: Surrogate, knowledge: Knowledge) -> list[_Rehearsed]:
    public = knowledge.public_images()
    stream = torch_stream(knowledge.seed, "tuning")
    model = build_model(knowledge.model).to(knowledge.device)
    spec = LocalTraining(
        kind=like.update.kind,
        epochs=like.update.local_steps,
        batch_size=like.batch_size,
        learning_rate=like.update.learning_rate,
    )
    order = torch.randperm(len(public), generator=stream)
    rehearsed = []
    whole = [indices for indices in order.split(like.batch_size) if len(indices) == like.batch_size]
    for number, indices in enumerate(whole[:REHEARSAL_VICTIMS]):
        batch = public.take(indices)
        seen: list[Tensor] = []

        def note(trained: Tensor, at: Tensor, seen: list[Tensor] = seen) -> None:
            seen.append(trained[at.argsort()].cpu())

        result = local_update(model, like.weights, batch, _Played(surrogate), spec, stream, on_batch=note)
        observation = replace(like, number=number, client=-1, update=result.update, labels=batch.labels)
        rehearsed.append(_Rehearsed(observation, torch.stack(seen).mean(dim=0)))
    return rehearsed
