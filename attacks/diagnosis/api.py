"""`diagnose`: why an inversion of an update is likely to succeed or to fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import nn

from fedveil.attacks.audit.inputs import Updates
from fedveil.attacks.audit.observed import batch_size_of, sent_weights
from fedveil.attacks.diagnosis import counting, last_layer, network, premises, values, weights
from fedveil.attacks.diagnosis.batch_norm import batch_norm
from fedveil.attacks.diagnosis.evidence import Evidence, read_sent
from fedveil.attacks.diagnosis.finding import Diagnosis, Finding, Outlook
from fedveil.attacks.diagnosis.shapes import likely_shape
from fedveil.attacks.diagnosis.wording import PYTHON, Wording
from fedveil.attacks.engine.attackable import count_classes
from fedveil.attacks.target.model import Mode, target_model
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import UpdateKind

MOST_IMAGES = 4096
"""In a batch; labels are counted one by one."""
Examination: TypeAlias = Callable[[Evidence], Iterator[Finding]]
OF_NUMBERS: tuple[Examination, ...] = (values.missing, values.norms, values.zero, values.coarse)
"""Those that need neither the weights nor the right kind."""
EXAMINATIONS: tuple[Examination, ...] = (
    values.missing,
    values.norms,
    values.zero,
    values.pruned,
    values.coarse,
    weights.same_weights,
    last_layer.law,
    last_layer.scale,
    last_layer.labels,
    network.steps,
    batch_norm,
    network.randomness,
    network.attackable,
    network.brightness,
    counting.batch,
    counting.equations,
    counting.first_layer,
)


def diagnose(
    model: nn.Module,
    update: Updates,
    *,
    image_shape: tuple[int, int, int] | None = None,
    batch_size: int | None = None,
    mode: Mode = "train",
    normalize: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Diagnosis:
    """Say why an inversion of one update is likely to succeed or to fail, without any image and before any attack.

    Seconds, where an attack takes minutes; and where an attack has failed, what to look at first. Everything is read from
    the update and the weights that the server sent: it knows no truth, and says so where it guesses. Whether these are the
    weights at which the client computed it can be told for one image and one step, see
    `fedveil.attacks.diagnosis.weights.same_weights`.

    >>> import torch, fedveil as fv
    >>> model = fv.build_model("mlp", image_shape=(1, 16, 16), classes=3)
    >>> update, _ = fv.client_update(model, torch.rand(1, 1, 16, 16), torch.tensor([2]))
    >>> found = fv.diagnose(model, update, image_shape=(1, 16, 16))
    >>> found.verdict
    'images can be solved for'
    >>> next(one.found for one in found.findings if one.what == "labels")
    '2, by the sign of head.weight and head.bias (idlg)'

    Args:
        model: with the weights that the server sent; see `fedveil.audit`. It stays as it is.
        update: one update, as `fedveil.audit` takes it.
        image_shape: (C, H, W); by default the first of some usual ones that the model takes.
        batch_size: images behind the update, 1 by default; contradictions are found as far as signs and ranks tell.
        mode: how the client's BatchNorm and dropout ran; contradictions are found where the update holds buffers.
        normalize: (means, deviations) per channel, if clients normalise images before they call the model.

    Raises:
        FedveilError: the model takes no such images, or names and shapes of the update are not its.
    """
    return examine(
        model, update, image_shape=image_shape, batch_size=batch_size, mode=mode, normalize=normalize, words=PYTHON
    )


def examine(
    model: nn.Module,
    update: Updates,
    *,
    image_shape: tuple[int, int, int] | None,
    batch_size: int | None,
    mode: Mode,
    normalize: tuple[Sequence[float], Sequence[float]] | None,
    words: Wording,
) -> Diagnosis:
    """Do what `diagnose` does for a caller who says things in other ``words`` than Python's."""
    model = _module(model)
    size = batch_size_of([], None, None, batch_size)
    if size > MOST_IMAGES:
        raise FedveilError(
            f"{words.batch_size.format(size)}: more images than any attack finds; allowed: up to {MOST_IMAGES}"
        )
    shape = likely_shape(model, mode, words) if image_shape is None else image_shape
    target = target_model(model, image_shape=shape, classes=0, mode=mode, normalize=normalize)
    target.module.float().cpu()
    target = replace(target, classes=count_classes(target))
    sent = read_sent(model, update)
    broken = tuple(values.broken(sent.broken))
    if sent.update is None:
        nothing = Finding(
            "update", Outlook.STOPS, "all other entries are 0" if broken else "all entries are 0", "nothing is in it"
        )
        return Diagnosis((*broken, nothing), ())
    evidence = Evidence(model, target, sent_weights(model), sent, sent.update, size, image_shape is None, words)
    looks = EXAMINATIONS
    if failed := premises.failed(evidence):
        looks = OF_NUMBERS
    with torch.enable_grad():
        found = (*failed, *(finding for look in looks for finding in look(evidence)))
    return Diagnosis((_kind(evidence), *broken, *found), values.sizes(evidence))


def _kind(evidence: Evidence) -> Finding:
    """As what the update was understood."""
    update = evidence.update
    if update.kind is UpdateKind.GRADIENT:
        found = "a gradient"
    else:
        rate = f"learning rate {update.learning_rate:g}" if update.rate_known else "of unknown learning rate"
        found = f"a weight change, {update.local_steps} local step(s), {rate}"
    guessed = evidence.sent.guessed
    return Finding(
        "update",
        Outlook.NEUTRAL,
        found + (", by its looks" if guessed else ""),
        f"{sum(t.numel() for t in update.tensors.values())} numbers in {len(update.tensors)} tensors",
        f"{evidence.words.gradient} and {evidence.words.change} say it" if guessed else "",
    )


def _module(model: object) -> nn.Module:
    """Return a model that is one.

    Raises:
        FedveilError: it is none, or has no parameters.
    """
    if not isinstance(model, nn.Module):
        raise FedveilError(f"model: expected an nn.Module with the weights that the server sent, got {model!r:.80}")
    if not any(True for _ in model.parameters()):
        raise FedveilError(f"model: {type(model).__name__} has no parameters")
    return model
