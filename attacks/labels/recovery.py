"""The labels that an attacker uses: granted, or recovered from the last layer's gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fedveil.attacks.base import Knowledge, Observation
from fedveil.attacks.labels.last_layer import (
    LastGradient,
    LastLayer,
    Outputs,
    find_last_layer,
    last_gradient,
    last_layer_outputs,
)
from fedveil.attacks.labels.rules import geng, idlg, llg
from fedveil.attacks.labels.simulation import StandIns, simulated
from fedveil.attacks.target import TargetModel
from fedveil.defense.devices import on_device
from fedveil.fl.data.images import Images
from fedveil.fl.messages import ClientUpdate
from fedveil.fl.seeding import torch_stream

STAND_INS = 160
"""Auxiliary images that stand for the client's."""
MADE_UP = 32
"""Smooth random images, where there are no auxiliary ones."""


def labels_of(observation: Observation, knowledge: Knowledge) -> Tensor:
    """Return the (B,) labels that the attacker uses: those granted, or those that it recovers from the update."""
    if observation.labels is not None:
        return observation.labels
    return recover_labels(
        observation.update,
        batch_size=observation.batch_size,
        target=knowledge.model,
        weights=observation.weights,
        auxiliary=knowledge.auxiliary,
    )


def recover_labels(
    update: ClientUpdate,
    *,
    batch_size: int,
    target: TargetModel,
    weights: Mapping[str, Tensor],
    auxiliary: Images | None = None,
) -> Tensor:
    """Return the labels of the batch behind an update, (B,) in ascending order: an update does not tell their order.

    One image is read off by `idlg`, which needs nothing but signs. More are counted from sizes, so the update's learning
    rate and number of steps have to be right: by `simulated` training of the last layer, on auxiliary images if there are
    any, else on the mean input that the gradient gives away. A layer whose gradient has the bias alone leaves `geng`, one
    whose inputs are not seen either leaves `llg`.

    Args:
        update: what the client sent.
        batch_size: B, images behind it.
        target: the classifier.
        weights: what the server had sent.
        auxiliary: the attacker's images.

    Raises:
        FedveilError: the update lacks the last layer, or the classifier has none.
    """
    target = replace(target, module=on_device(target.module, torch.device("cpu")))
    layer = find_last_layer(target)
    gradient = last_gradient(update, layer)
    counts = (
        idlg(gradient) if batch_size == 1 else _counts(update, batch_size, target, weights, auxiliary, layer, gradient)
    )
    return torch.arange(target.classes).repeat_interleave(counts)


def _counts(
    update: ClientUpdate,
    batch_size: int,
    target: TargetModel,
    weights: Mapping[str, Tensor],
    auxiliary: Images | None,
    layer: LastLayer,
    gradient: LastGradient,
) -> Tensor:
    known = {name: weight.detach().cpu() for name, weight in target.known(weights).items()}
    own_weight = None if layer.weight is None else known[layer.weight].flatten(1)
    own_bias = None if layer.bias is None else known[layer.bias]
    steps = update.local_steps
    labels = shares = None
    if auxiliary is None and gradient.weight is not None and gradient.bias is not None:
        inputs: Sequence[Tensor] | None = [mean_input(gradient)[None]] * steps
        seen: list[Outputs] = []
    else:
        if auxiliary is None:
            images = _made_up(target.image_shape)
        else:
            chosen = _evenly(auxiliary, STAND_INS)
            images, labels = chosen.batch(torch.arange(len(chosen)))
            shares = torch.bincount(auxiliary.labels, minlength=target.classes) / len(auxiliary)
        several = batch_size if _has_batch_statistics(target) else len(images)
        seen = [last_layer_outputs(target, at, images, batch_size=several) for at in _path(known, update)]
        found = [one.inputs for one in seen]
        inputs = [x for x in found if x is not None] if None not in found else None
    if inputs is not None and own_weight is not None:
        stand_ins = StandIns(inputs, labels, shares)
        return simulated(
            gradient, stand_ins, own_weight, own_bias, learning_rate=update.learning_rate, batch_size=batch_size
        )
    if gradient.bias is not None:
        return geng(gradient.bias, torch.cat([one.probabilities for one in seen]), batch_size)
    return llg(gradient.rows, batch_size)


def mean_input(gradient: LastGradient) -> Tensor:
    """Return (d,): what entered the last layer, averaged over the batch by the size of each class's error."""
    assert gradient.weight is not None
    assert gradient.bias is not None
    return gradient.bias.sign() @ gradient.weight / gradient.bias.abs().sum().clamp(min=1e-12)


def _path(weights: Mapping[str, Tensor], update: ClientUpdate) -> list[dict[str, Tensor]]:
    """The weights at which each local step begins, as if all steps were equal."""
    change = update.tensors
    parts = [step / update.local_steps for step in range(update.local_steps)]
    return [{n: w + part * change[n] if n in change and part else w for n, w in weights.items()} for part in parts]


def _has_batch_statistics(target: TargetModel) -> bool:
    return target.mode == "train" and any(isinstance(part, _BatchNorm) for part in target.module.modules())


def _evenly(images: Images, count: int) -> Images:
    """Draw so many images, of each class in turn."""
    order = torch.randperm(len(images), generator=torch_stream(0, "label stand-ins"))
    labels = images.labels[order]
    one_hot = F.one_hot(labels)
    # The first of every class, then the second of every class, and so on.
    rank = (one_hot.cumsum(dim=0) * one_hot).sum(dim=1)
    return images.take(order[rank.argsort(stable=True)[:count]])


def _made_up(shape: tuple[int, int, int]) -> Tensor:
    """Return smooth random images, (n, C, H, W) in [0, 1]."""
    channels, height, width = shape
    coarse = torch.randn((MADE_UP, channels, 5, 5), generator=torch_stream(0, "made-up images"))
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic")
    return (0.5 + 0.25 * smooth).clamp(0, 1)
