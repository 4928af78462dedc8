"""Victims of the attacker's own: auxiliary images, attacked as the clients' are, of which it knows the truth."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedveil.attacks.base import AttackerPreparation, Knowledge, Observation
from fedveil.attacks.target.elementary import Elementary
from fedveil.defense.base import Surrogate
from fedveil.fl.data.images import Images
from fedveil.fl.hooks import NoHooks
from fedveil.fl.messages import ClientUpdate
from fedveil.fl.seeding import torch_stream
from fedveil.fl.training import LocalTraining, exchanged, local_update


@dataclass(frozen=True, eq=False)
class OwnVictim:
    """A batch of auxiliary images, and what it sends.

    Attributes:
        observation: of the update, as the attacker observes a client's: with labels where those are granted to it.
        batch: the images.
        trained: (B, C, H, W) what was trained on instead of them, the mean over steps; for the first of several updates.
    """

    observation: Observation
    batch: Images
    trained: Tensor


class _Hooks(NoHooks):
    """The defence as the attacker knows it, in front of its own training."""

    def __init__(self, surrogate: Surrogate) -> None:
        self._surrogate = surrogate

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        if self._surrogate.data is None or self._surrogate.batch is not None:
            return x
        return self._surrogate.data(x, y, stream)

    def batch(self, model: nn.Module, x: Tensor, y: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        return (x, y) if self._surrogate.batch is None else self._surrogate.batch(model, x, y, stream)

    def loss(self, loss: Tensor, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        return loss if self._surrogate.loss is None else self._surrogate.loss(loss, model, x, y, logits)

    def update(self, update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
        return update if self._surrogate.update is None else self._surrogate.update(update, stream)


def own_victims(
    like: Observation, preparation: AttackerPreparation, knowledge: Knowledge, batches: int
) -> list[OwnVictim]:
    """Return what auxiliary images send as the client does: its training function, weights and protocol, and the defence.

    Where the client's batch was observed several times, so are these, each time with noise drawn afresh. Behind a defence
    that makes one image of many, what was rehearsed sends.

    Args:
        like: an observation of the client's.
        preparation: of the attacker, against the defence.
        knowledge: with auxiliary images.
        batches: at most so many of the client's size, of different images.
    """
    auxiliary = knowledge.auxiliary_images()
    # An inverse undoes the defence too well on images that it has learnt.
    originals, shown = preparation.unlearnt or (auxiliary, auxiliary)
    stream = torch_stream(knowledge.seed, "own victims")
    order = torch.randperm(len(originals), generator=stream)
    whole = [indices for indices in order.split(like.batch_size) if len(indices) == like.batch_size][:batches]
    made = []
    for number, indices in enumerate(whole):
        batch = originals.take(indices)
        labels = batch.labels if knowledge.threat_model.labels else None
        sent = [_sent(one, shown.take(indices), preparation.surrogate, knowledge, stream) for one in like.series]
        first, *others = [replace(one, number=number, client=-1, labels=labels, repeats=()) for one, _ in sent]
        made.append(OwnVictim(replace(first, repeats=tuple(others)), batch, sent[0][1]))
    return made


def others_than(own: Sequence[OwnVictim], auxiliary: Images) -> Images:
    """Return the auxiliary images that are not among these victims; there may be none."""
    taken = {image.numpy().tobytes() for one in own for image in one.batch.pixels}
    free = [number for number, image in enumerate(auxiliary.pixels) if image.numpy().tobytes() not in taken]
    return auxiliary.take(torch.tensor(free, dtype=torch.long))


def _sent(
    like: Observation, batch: Images, surrogate: Surrogate, knowledge: Knowledge, stream: torch.Generator
) -> tuple[Observation, Tensor]:
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
    seen: list[Tensor] = []
    with Elementary(counting=True):
        result = local_update(model, weights, batch, _Hooks(surrogate), spec, stream, on_batch=partial(_note, seen))
    # A client may keep its statistics to itself.
    buffers = {name: change for name, change in result.update.buffers.items() if name in like.update.buffers}
    update = replace(result.update, buffers=buffers)
    return replace(like, update=update, weights=weights, trained_images=None), torch.stack(seen).mean(dim=0)


def _note(seen: list[Tensor], trained: Tensor, at: Tensor) -> None:
    seen.append(trained[at.argsort()].cpu())


def _trainable(knowledge: Knowledge, update: ClientUpdate) -> nn.Module:
    """A copy of the model to train on, that counts its batches, where those parameters learn that the update holds."""
    model = copy.deepcopy(knowledge.model.module).to(knowledge.device)
    for part in model.modules():
        if isinstance(part, _BatchNorm):
            part.track_running_stats = part.running_mean is not None
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in update.tensors)
    return model
