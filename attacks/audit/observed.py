"""What users hand to an audit, as what an attacker observes and as the truth behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fedveil.attacks.audit.inputs import Pictures, Updates, as_floats, as_updates
from fedveil.attacks.base import Observation
from fedveil.attacks.scoring.victims import VictimBatch
from fedveil.defense.base import Defense, PreparedDefense, Stateless, TrainedOn
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import ClientUpdate
from fedveil.fl.training import Weights, exchanged


def observations_of(
    model: nn.Module,
    updates: Sequence[ClientUpdate],
    repeats: Sequence[Updates | tuple[nn.Module, Updates]],
    labels: Tensor | None,
    size: int,
) -> list[Observation]:
    """Return one observation per victim batch, with what was sent of that batch at other times.

    Args:
        model: with the weights that the server sent.
        updates: of each batch.
        repeats: see `fedveil.audit`.
        labels: (n,) of all batches in order; None if they are not known.
        size: images behind each update.

    Raises:
        FedveilError: a repeat holds another number of updates, its model is another one, or an update is of another
            number of local steps than the first.
    """
    told = [None] * len(updates) if labels is None else labels.split(size)
    weights = sent_weights(model)

    def observed(sent: Sequence[ClientUpdate], weights: Weights) -> list[Observation]:
        return [
            Observation(number, number, one, weights, size, own)
            for number, (one, own) in enumerate(zip(sent, told, strict=True))
        ]

    if not isinstance(repeats, list | tuple):
        raise FedveilError(f"repeats: expected a list of what was sent at other times, got {repeats!r:.80}")
    times = [observed(updates, weights)]
    for number, given in enumerate(repeats):
        at, then, sent = model, weights, given
        if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], nn.Module):
            at, sent = given
            then = sent_weights(at)
        if {n: w.shape for n, w in then.items()} != {n: w.shape for n, w in weights.items()}:
            raise FedveilError(f"repeats: the model of repeat {number} has other parameters than the first one")
        again = as_updates(at, sent)
        if len(again) != len(updates):
            raise FedveilError(f"repeats: repeat {number} holds {len(again)} update(s), expected {len(updates)}")
        times.append(observed(again, then))
    steps = updates[0].local_steps
    for time, seen in enumerate(times):
        for one in seen:
            if one.update.local_steps != steps:
                where = f"repeats: update {one.number} of repeat {time - 1}" if time else f"update: update {one.number}"
                raise FedveilError(
                    f"{where} is of {one.update.local_steps} local step(s), update 0 of {steps}: attacks replay one number"
                    " of steps for all; audit updates of each number by themselves"
                )
    return [replace(first, repeats=tuple(others)) for first, *others in zip(*times, strict=True)]


def sent_weights(model: nn.Module) -> Weights:
    """Return what the server sent: a copy of the model's parameters and floating-point buffers by name, on the CPU."""
    return {name: weight.float().cpu().clone() for name, weight in exchanged(model).items()}


def batch_size_of(updates: Sequence[ClientUpdate], images: Any, labels: Any, batch_size: int | None) -> int:
    """Return how many images are behind each update; see `fedveil.audit`.

    Raises:
        FedveilError: images or labels are not as many for each update, or not ``batch_size``.
    """
    if batch_size is not None:
        if not isinstance(batch_size, int) or isinstance(batch_size, bool):
            raise FedveilError(f"batch_size: expected a whole number, got {batch_size!r}")
        if batch_size < 1:
            raise FedveilError(f"batch_size: at least 1, got {batch_size}")
    for what, given in (("images", images), ("labels", labels)):
        if given is None:
            continue
        count = len(given)
        size = batch_size or count // len(updates)
        if count == 0 or size * len(updates) != count:
            raise FedveilError(
                f"{what}: {count} do not make {len(updates)} update(s) of {size or 'equally many'} image(s) each"
            )
        return size
    return batch_size or 1


def victims_of(images: Images, size: int, in_gallery: bool) -> list[VictimBatch]:
    """Return the truth behind each update; the originals come first in the gallery, if there is one."""
    batches = [tuple(at.tolist()) for at in torch.arange(len(images)).split(size)]
    return [
        VictimBatch(number, number, ids, images.take(torch.tensor(ids)), gallery=ids if in_gallery else None)
        for number, ids in enumerate(batches)
    ]


def with_draws(
    victims: list[VictimBatch],
    trained_images: Pictures | Sequence[Pictures] | None,
    defense: Defense[Any] | PreparedDefense,
    times: int,
) -> list[VictimBatch]:
    """Return the victims with what the client trained on each time, as far as that is known.

    Args:
        victims: the truth.
        trained_images: see `fedveil.audit`.
        defense: the client's; one that leaves images alone trains on the originals.
        times: how often each batch was seen.

    Raises:
        FedveilError: the trained images are not as many and as large as the originals, each time.
    """
    if trained_images is not None:
        given: Sequence[Any] = (
            [trained_images] if times == 1 or isinstance(trained_images, Images) else list(trained_images)
        )
        if len(given) != times:
            raise FedveilError(f"trained_images: expected {times}, one for each time that a batch was seen")
        draws = [as_floats("trained_images", one) for one in given]
        expected = (sum(map(len, victims)), *victims[0].images.shape)
        for trained in draws:
            if trained.shape != expected:
                raise FedveilError(f"trained_images: expected {expected} as the images, got {tuple(trained.shape)}")
        return [replace(batch, draws=tuple(draw[list(batch.victims)] for draw in draws)) for batch in victims]
    if isinstance(defense, Defense):
        # Modules that are not at hand may change images, and so do images of a client's that are not.
        if defense.trained_on is not TrainedOn.NOTHING or defense.mixes:
            return victims
        defense = Stateless(defense)
    if defense.surrogate().data is not None:
        return victims
    return [replace(batch, draws=(batch.originals,) * times) for batch in victims]
