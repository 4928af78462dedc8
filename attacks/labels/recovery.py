"""The labels that an attacker uses: granted, or recovered from the last layer's gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fedveil.attacks.base import Knowledge, Observation
from fedveil.attacks.labels.last_layer import (
    LastGradient,
    LastLayer,
    find_last_layer,
    last_gradient,
    last_layer_outputs,
)
from fedveil.attacks.labels.rules import geng, idlg, llg
from fedveil.attacks.labels.simulation import StandIns, simulated
from fedveil.attacks.target.model import TargetModel
from fedveil.defense.base import Surrogate
from fedveil.defense.devices import on_device
from fedveil.fl.data.images import Images
from fedveil.fl.messages import ClientUpdate
from fedveil.fl.seeding import torch_stream

Rule = Literal["idlg", "simulated", "geng", "llg"]
"""How labels are read; see `recover_labels`."""
SIZES = tuple(10 ** (exponent / 8) for exponent in range(-32, 1))
"""Of an update, as parts of what it would be undefended or at a learning rate of 1: from 1e-4 to 1."""
USUAL = -1.5
"""Decade of a learning rate that nothing is known of, give or take one."""
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
        surrogate=knowledge.preparation(observation.client).surrogate if knowledge.preparations else None,
    )


def recover_labels(
    update: ClientUpdate,
    *,
    batch_size: int,
    target: TargetModel,
    weights: Mapping[str, Tensor],
    auxiliary: Images | None = None,
    surrogate: Surrogate | None = None,
) -> Tensor:
    """Return the labels of the batch behind an update, (B,) in ascending order: an update does not tell their order.

    One image is read off by `idlg`, which needs nothing but signs. More are counted from sizes, so the update's learning
    rate and number of steps have to be right (see `likeliest_rate`): by `simulated` training of the last layer, on
    auxiliary images if there are any, else on the mean input that the gradient gives away. A layer whose gradient has the
    bias alone leaves `geng`, one whose inputs are not seen either leaves `llg`. Where the optimiser is no plain SGD the size
    says nothing, and the likeliest is taken.

    Args:
        update: what the client sent.
        batch_size: B, images behind it.
        target: the classifier.
        weights: what the server had sent.
        auxiliary: the attacker's images.
        surrogate: the defence, where the attacker knows it: auxiliary images go through it before they stand for the
            client's, and where it acts on the update, the update's size is not relied on.

    Raises:
        FedveilError: the update lacks the last layer, or the classifier has none.
    """
    target = replace(target, module=on_device(target.module, torch.device("cpu")))
    layer = find_last_layer(target)
    gradient = last_gradient(update, layer)
    if batch_size == 1:
        counts = idlg(gradient)
    else:
        head = _Head.of(update, batch_size, target, weights, layer, auxiliary, surrogate)
        # A defence that says which entries are as they were has not scaled them.
        if surrogate is not None and surrogate.update is not None and surrogate.visible is None:
            update = head.likeliest({size: _of_size(update, size) for size in SIZES})
        elif not update.plain:
            update = head.likeliest_rate(update)
        counts, _ = head.counts(update)
    return torch.arange(target.classes).repeat_interleave(counts)


def likeliest_rate(
    update: ClientUpdate,
    *,
    batch_size: int,
    target: TargetModel,
    weights: Mapping[str, Tensor],
) -> float:
    """Return the learning rate under which a weight change of unknown rate is most probable; see `recover_labels`.

    Counts are whole numbers and the softmax is about known, so few sizes of the gradient fit. The larger the batch, the
    less that tells.
    """
    target = replace(target, module=on_device(target.module, torch.device("cpu")))
    head = _Head.of(update, batch_size, target, weights, find_last_layer(target), None, None)
    return head.likeliest_rate(update).learning_rate


def label_rule(update: ClientUpdate, *, batch_size: int, target: TargetModel, weights: Mapping[str, Tensor]) -> Rule:
    """Return by which rule `recover_labels` reads the labels of an update, without auxiliary images.

    Raises:
        FedveilError: see `recover_labels`.
    """
    target = replace(target, module=on_device(target.module, torch.device("cpu")))
    layer = find_last_layer(target)
    gradient = last_gradient(update, layer)
    if batch_size == 1:
        return "idlg"
    return _Head.of(update, batch_size, target, weights, layer, None, None).rule(gradient)


@dataclass(frozen=True, eq=False)
class _Head:
    """All that counting takes beside the size of the gradient.

    Attributes:
        layer: the last one.
        batch_size: B.
        weight: as sent; None where the layer has none of its own.
        bias: likewise.
        stand_ins: None where what enters the layer is not seen.
        probabilities: (n, k) softmax of images in the place of the client's; none where the gradient gives the input away.
    """

    layer: LastLayer
    batch_size: int
    weight: Tensor | None
    bias: Tensor | None
    stand_ins: StandIns | None
    probabilities: Tensor | None

    @classmethod
    def of(
        cls,
        update: ClientUpdate,
        batch_size: int,
        target: TargetModel,
        weights: Mapping[str, Tensor],
        layer: LastLayer,
        auxiliary: Images | None,
        surrogate: Surrogate | None,
    ) -> _Head:
        known = {name: weight.detach().cpu() for name, weight in target.known(weights).items()}
        weight = None if layer.weight is None else known[layer.weight].flatten(1)
        bias = None if layer.bias is None else known[layer.bias]
        gradient = last_gradient(update, layer)
        if auxiliary is None and gradient.weight is not None and gradient.bias is not None:
            # A ratio, so whatever the size of the update.
            stand_ins = StandIns([mean_input(gradient)[None]] * update.local_steps)
            return cls(layer, batch_size, weight, bias, stand_ins, None)
        labels = shares = None
        if auxiliary is None:
            images = _made_up(target.image_shape)
        else:
            chosen = _evenly(auxiliary, STAND_INS)
            images, labels = chosen.batch(torch.arange(len(chosen)))
            shares = torch.bincount(auxiliary.labels, minlength=target.classes) / len(auxiliary)
            if surrogate is not None and surrogate.data is not None:
                images = surrogate.data(images, labels, torch_stream(0, "label stand-ins", "defence"))
        several = batch_size if _has_batch_statistics(target) else len(images)
        seen = [last_layer_outputs(target, at, images, batch_size=several) for at in _path(known, update)]
        found = [one.inputs for one in seen]
        inputs = [x for x in found if x is not None] if None not in found else None
        shown = None if inputs is None or weight is None else StandIns(inputs, labels, shares)
        return cls(layer, batch_size, weight, bias, shown, torch.cat([one.probabilities for one in seen]))

    def rule(self, gradient: LastGradient) -> Rule:
        """Return by which rule labels of several images are counted."""
        if self.stand_ins is not None and self.weight is not None:
            return "simulated"
        return "geng" if gradient.bias is not None and self.probabilities is not None else "llg"

    def counts(self, update: ClientUpdate) -> tuple[Tensor, float]:
        """The likeliest (k,) counts, and -2 log of their probability, up to a constant; NaN where no rule gives one."""
        gradient = last_gradient(update, self.layer)
        rule = self.rule(gradient)
        if rule == "simulated":
            assert self.stand_ins is not None
            assert self.weight is not None
            return simulated(
                gradient,
                self.stand_ins,
                self.weight,
                self.bias,
                learning_rate=update.learning_rate,
                batch_size=self.batch_size,
            )
        if rule == "geng":
            assert gradient.bias is not None
            assert self.probabilities is not None
            return geng(gradient.bias, self.probabilities, self.batch_size), math.nan
        return llg(gradient.rows, self.batch_size), math.nan

    def likeliest(
        self, options: Mapping[float, ClientUpdate], charge: Callable[[float], float] = lambda size: 0.0
    ) -> ClientUpdate:
        """Return the most probable of an update's readings, by the size that each takes it to have.

        Args:
            options: the readings.
            charge: -2 log of each size's own probability, up to a constant.
        """
        if self.stand_ins is None:
            return options[1.0]
        classes = len(last_gradient(options[1.0], self.layer).rows)

        def cost(size: float) -> float:
            # What is observed is the update: the gradient's uncertainty, at a larger size, spreads over a wider space.
            return self.counts(options[size])[1] + 2 * (classes - 1) * math.log(size) + charge(size)

        return options[min(options, key=cost)]

    def likeliest_rate(self, update: ClientUpdate) -> ClientUpdate:
        """Return the update with the learning rate under which it is most probable."""
        options = {rate: replace(update, learning_rate=rate) for rate in SIZES}
        return self.likeliest(options, lambda rate: (math.log10(rate) - USUAL) ** 2)


def _of_size(update: ClientUpdate, size: float) -> ClientUpdate:
    return replace(update, tensors={name: tensor / size for name, tensor in update.tensors.items()})


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
