"""Updates as clients really send them: captured from the function that trains, never computed beside it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fedveil.attacks.audit.inputs import Pictures, as_images
from fedveil.attacks.base import Observation
from fedveil.attacks.engine.attackable import count_classes
from fedveil.attacks.scoring.victims import VictimBatch
from fedveil.attacks.target.model import Mode, Normalise, target_model
from fedveil.defense.base import Defense, DefenseContext, PreparedDefense, TrainedOn
from fedveil.fl.errors import FedveilError
from fedveil.fl.hooks import ClientHooks, Memory, NoHooks
from fedveil.fl.messages import ClientUpdate, UpdateKind
from fedveil.fl.models import ModelSpec
from fedveil.fl.seeding import torch_stream
from fedveil.fl.training import LocalTraining, Weights, exchanged, local_update


def capture(
    model: nn.Module,
    weights: Weights,
    batch: VictimBatch,
    hooks: ClientHooks,
    training: LocalTraining,
    *,
    local_steps: int,
    stream: torch.Generator,
    memory: Memory | None = None,
) -> tuple[Observation, VictimBatch]:
    """Let a client train on a victim batch with its defence in place, and keep what it would send.

    Random views and public images beside the victims are left out: this is the worst case, and the honest one. A flipped
    image shows a person as much as the image itself, but its error against the original would look like privacy; and a
    server can wait for a step in which the image was shown as it is, or know which public images it has given out.

    Args:
        model: on the device to compute on; its weights are overwritten.
        weights: as the server sent them (see `fedveil.fl.training.exchanged`).
        batch: whose images.
        hooks: the client's defence.
        training: the client's; kind, steps and batch size are replaced by the audit's, its optimiser stays.
        local_steps: the client's steps on the batch; 1 sends the gradient.
        stream: the only source of randomness.
        memory: what the client kept of its last turn; None for a first one. It is left out where it is in units of another
            optimiser's steps than what the audit sends: it would drown the victims' gradient, which would look like privacy.

    Returns:
        What the server sees, and the truth with the images that the client trained on. Where each of several steps drew
        fresh noise that is their mean: a perfect inversion would average it.
    """
    spec = replace(
        training,
        kind=UpdateKind.GRADIENT if local_steps == 1 else UpdateKind.DELTA,
        epochs=local_steps,
        steps=None,
        batch_size=len(batch),
        augmentation=(),
        replay=0.0,
        sampling="shuffled",
    )
    seen: list[Tensor] = []

    def note(trained: Tensor, at: Tensor) -> None:
        seen.append(trained[at.argsort()].cpu())

    # A gradient and steps of plain SGD are of one size, however many there are; of other optimisers a step alone may be.
    if not training.optimizer.plain(2) and spec.kind is not training.kind:
        memory = None
    update = local_update(model, weights, batch.images, hooks, spec, stream, memory=memory, on_batch=note).update
    observation = Observation(batch.number, batch.client, update, weights, len(batch))
    return observation, replace(batch, draws=(torch.stack(seen).mean(dim=0),))


def trains_on(hooks: ClientHooks, batch: VictimBatch) -> bool:
    """Return whether a client trains on all images of a batch; of what a defence leaves out nothing tells."""
    return len(hooks.images(batch.images)) == len(batch)


def together(captured: Sequence[tuple[Observation, VictimBatch]]) -> tuple[Observation, VictimBatch]:
    """Return what was captured of one batch several times as one observation with repeats, and one truth with each draw."""
    (first, truth), *again = captured
    draws = (draw for _, batch in captured for draw in batch.draws)
    return replace(first, repeats=tuple(observation for observation, _ in again)), replace(truth, draws=tuple(draws))


def client_update(
    model: nn.Module,
    images: Pictures,
    labels: Any,
    *,
    defense: Defense[Any] | PreparedDefense | None = None,
    local_steps: int = 1,
    learning_rate: float = 0.1,
    mode: Mode = "train",
    normalize: tuple[Sequence[float], Sequence[float]] | None = None,
    seed: int = 0,
) -> tuple[ClientUpdate, Tensor]:
    """Train a model on one batch as a client does, and return what it would send, with what it trained on.

    >>> import torch, fedveil as fv
    >>> model = fv.build_model("lenet", image_shape=(1, 16, 16), classes=2)
    >>> update, trained = fv.client_update(model, torch.rand(3, 1, 16, 16), [0, 1, 0])
    >>> update.kind, trained.shape
    (<UpdateKind.GRADIENT: 'gradient'>, torch.Size([3, 1, 16, 16]))

    Args:
        model: with the weights that the server sent; it stays as it is.
        images: the client's batch, see `fedveil.audit`.
        labels: (n,) classes.
        defense: the client's defence. One with trained modules has to be prepared.
        local_steps: steps of SGD on the batch; 1 sends the gradient, more send the weight change.
        learning_rate: of SGD.
        mode: how BatchNorm and dropout run.
        normalize: (means, deviations) per channel, if the client normalises images before it calls the model.
        seed: of the defence's noise.

    Returns:
        The update, and (n, C, H, W) in [0, 1] what the client trained on, the mean of several steps.

    Raises:
        FedveilError: images and labels do not fit each other, or the defence is not prepared.
    """
    own = as_images("images", images, labels)
    twin = copy.deepcopy(model)
    device = next(twin.parameters()).device
    if normalize is not None:
        twin.register_forward_pre_hook(Normalise(*normalize, own.shape[0]))
    if isinstance(defense, Defense):
        if defense.mixes and len(own) == 1:
            raise FedveilError(
                f"defense: {defense!r} would mix the one image with itself: pass more images, or"
                " defense.prepare(private, context, public, client=0) with the client's others"
            )
        if defense.trained_on is not TrainedOn.NOTHING:
            raise FedveilError(
                f"defense: {defense!r} has modules to train first: pass defense.prepare(private, context, public, client=0)"
            )
        spec = ModelSpec("convnet", own.shape, count_classes(target_model(twin, image_shape=own.shape, classes=0)))
        context = DefenseContext(own, spec, device, seed)
        defense = defense.prepare(own, context, defense.pretrain(context), client=0)
    observation, batch = capture(
        twin,
        {name: weight.clone() for name, weight in exchanged(twin).items()},
        VictimBatch(0, 0, tuple(range(len(own))), own),
        NoHooks() if defense is None else defense,
        LocalTraining(UpdateKind.GRADIENT, 1, len(own), learning_rate, mode=mode),
        local_steps=local_steps,
        stream=torch_stream(seed, "client"),
    )
    trained = batch.trained
    assert trained is not None  # capture has filled it
    return observation.update, trained
