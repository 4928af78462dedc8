"""Labels that are shares of classes: an attacker that knows how they are made reads them off the update as it inverts it.

With the last layer's weight W and bias b, inputs h_i, probabilities p_i and shares s_i of B images,

    B grad_W = sum of (p_i - s_i) h_i,     B grad_b = sum of (p_i - s_i).

Before anything is inverted, p_i is about known: that of the attacker's own images of the class behind the defence, as for
whole labels (Zhao et al. 2020, arXiv 2001.02610). The bias then tells the sum of the shares, for one image the shares
themselves. With images at hand, which the first inversion gives, p_i and h_i are known, and the equations are solved for
each s_i; a second inversion takes those. Which images were mixed in stays unknown: the class of a part does not tell whose
it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from fedveil.attacks.adaptive.tuning import Inversion
from fedveil.attacks.base import Knowledge, Observation
from fedveil.attacks.labels import labels_of
from fedveil.attacks.labels.last_layer import LastLayer, Outputs, find_last_layer, last_gradient, last_layer_outputs
from fedveil.attacks.matching.attack import Visible
from fedveil.attacks.target.model import trainable
from fedveil.defense.base import BatchHook
from fedveil.defense.devices import on_device
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import Reconstruction
from fedveil.fl.seeding import torch_stream
from fedveil.fl.training import Weights, as_shares

STAND_INS = 32
"""Auxiliary images of a class, behind the defence, that stand for one before any is inverted."""


@dataclass(frozen=True, eq=False)
class WithShares:
    """An inversion that is told no whole labels, but what can be read of the shares: an `Inversion` of two turns.

    Where the client trains on more images than its own, all are looked for, and its own are returned.

    Attributes:
        inversion: inverts, once with what is expected of the shares and once with what the first turn tells of them.
        batch: what a client makes of a batch, see `Surrogate.batch`.
    """

    inversion: Inversion
    batch: BatchHook

    def smoothed(self, factor: float) -> WithShares:
        """See `Inversion`."""
        return replace(self, inversion=self.inversion.smoothed(factor))

    def invert(
        self, observations: Sequence[Observation], knowledge: Knowledge, visible: Visible | None = None
    ) -> list[Reconstruction]:
        """See `Inversion`."""
        reading = Reading(self.batch, knowledge)
        labels = [labels_of(one, knowledge) for one in observations]
        first = [_told(one, own, reading.expected(one, own)) for one, own in zip(observations, labels, strict=True)]
        found = self.inversion.invert(first, knowledge, visible)
        second = [
            _told(one, own, reading.of_images(one, own, made.images))
            for one, own, made in zip(first, labels, found, strict=True)
        ]
        found = self.inversion.invert(second, knowledge, visible)
        return [
            replace(made, images=made.images[: len(own)], labels=own) for made, own in zip(found, labels, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class Reading:
    """Reads shares off updates.

    Attributes:
        batch: see `WithShares`.
        knowledge: with auxiliary images.
    """

    batch: BatchHook
    knowledge: Knowledge

    def expected(self, observation: Observation, labels: Tensor) -> Tensor:
        """Return the shares (M, k) to expect, moved so that they explain the bias's gradient.

        Those move that vary. Where the update does not tell that gradient they all stay as they are.

        Args:
            observation: of the update.
            labels: (B,) of the client's images; it trains on M.
        """
        stand_ins = self._stand_ins_for(observation, labels)
        expected = torch.stack([one.shares.mean(0) for one in stand_ins])
        layer = self._layer
        if layer is None or layer.bias not in observation.update.tensors:
            return expected
        likely = torch.stack([self._outputs(observation, one.images).probabilities.mean(0) for one in stand_ins])
        bias = last_gradient(observation.update, layer).bias
        assert bias is not None  # it is in the update
        off = (likely - expected).sum(0) - len(expected) * bias
        varying = torch.stack([one.variance for one in stand_ins])
        return on_simplex(expected + (varying / varying.sum().clamp_min(1e-30))[:, None] * off)

    def of_images(self, observation: Observation, labels: Tensor, images: Tensor) -> Tensor:
        """Return the shares (M, k) with which these images (M, C, H, W) explain the last layer's gradient best.

        Shares that never vary, and all where the update does not tell, are what they were.
        """
        assert observation.shares is not None
        before, layer = observation.shares.double(), self._layer
        open_ = torch.stack([one.variance for one in self._stand_ins_for(observation, labels)]) > 0
        if layer is None or layer.weight not in observation.update.tensors or not bool(open_.any()):
            return before
        outputs = self._outputs(observation, images)
        if outputs.inputs is None:
            return before
        gradient, inputs = last_gradient(observation.update, layer), outputs.inputs
        assert gradient.weight is not None  # it is in the update
        sums = gradient.weight
        if gradient.bias is not None:
            sums = torch.cat([sums, gradient.bias[:, None]], dim=1)
            inputs = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=inputs.dtype)], dim=1)
        known = (outputs.probabilities - before)[~open_].T @ inputs[~open_]
        errors = ((len(images) * sums - known) @ torch.linalg.pinv(inputs[open_], rtol=1e-6)).T
        before[open_] = on_simplex(outputs.probabilities[open_] - errors)
        return before

    def _outputs(self, observation: Observation, images: Tensor) -> Outputs:
        target = replace(self.knowledge.model, module=self._module)
        known = {name: own.detach().cpu() for name, own in target.known(observation.weights).items()}
        return last_layer_outputs(target, known, images.cpu(), batch_size=len(images))

    @cached_property
    def _module(self) -> nn.Module:
        return on_device(self.knowledge.model.module, torch.device("cpu"))

    @cached_property
    def _layer(self) -> LastLayer | None:
        try:
            return find_last_layer(replace(self.knowledge.model, module=self._module))
        except FedveilError:
            return None

    def _stand_ins_for(self, observation: Observation, labels: Tensor) -> list[_StandIns]:
        """Of each image that is trained on: those of the client's, then those that its defence adds in the same order."""
        each = [self._stand_ins(observation.weights, label) for label in labels.tolist()]
        return [own[place] for place in range(len(each[0])) for own in each]

    def _stand_ins(self, weights: Weights, label: int) -> list[_StandIns]:
        key = id(weights), label
        if key not in self._drawn:
            known, model = self.knowledge.auxiliary_images(), self.knowledge.model
            of_class = (known.labels == label).nonzero().flatten()
            some = known.take(of_class if len(of_class) else torch.arange(len(known)))
            stream = torch_stream(self.knowledge.seed, "shares", label)
            x, y = some.batch(torch.randint(len(some), (STAND_INS,), generator=stream))
            module = trainable(self._module, weights)
            images, labels = self.batch(module, x, torch.full_like(y, label), stream)
            pairs = zip(images.split(STAND_INS), as_shares(labels, model.classes).split(STAND_INS), strict=True)
            self._drawn[key] = [_StandIns(own, shares.double()) for own, shares in pairs]
        return self._drawn[key]

    @cached_property
    def _drawn(self) -> dict[tuple[int, int], list[_StandIns]]:
        return {}


@dataclass(frozen=True, eq=False)
class _StandIns:
    """What the defence makes of auxiliary images of one class, in the place of one image that is trained on.

    Attributes:
        images: (n, C, H, W).
        shares: (n, k) of the classes.
    """

    images: Tensor
    shares: Tensor

    @property
    def variance(self) -> Tensor:
        """Of the shares, over classes; 0 where labels are whole."""
        return self.shares.var(0).sum()


def on_simplex(shares: Tensor) -> Tensor:
    """Return the nearest shares: rows (n, k) that are at least 0 and of sum 1 (Held et al. 1974; Duchi et al. 2008, fig. 1).

    >>> on_simplex(torch.tensor([[0.8, 0.4, -0.3]]))
    tensor([[0.7000, 0.3000, 0.0000]])
    """
    ordered = shares.sort(dim=1, descending=True).values
    excess = (ordered.cumsum(1) - 1) / torch.arange(1, shares.shape[1] + 1, device=shares.device)
    last = (ordered > excess).sum(1, keepdim=True) - 1
    return (shares - excess.gather(1, last)).clamp_min(0)


def _told(observation: Observation, labels: Tensor, shares: Tensor) -> Observation:
    """The observation as one of all images that were trained on, with their shares; the client's own ``labels`` stay."""
    added = shares[len(labels) :].argmax(1).to(labels)
    return replace(observation, batch_size=len(shares), labels=torch.cat([labels, added]), shares=shares.float())
