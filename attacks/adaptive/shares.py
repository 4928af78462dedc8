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
from torch import Tensor

from fedveil.attacks.adaptive.tuning import Inversion
from fedveil.attacks.base import Knowledge, Observation
from fedveil.attacks.labels import labels_of
from fedveil.attacks.labels.last_layer import LastLayer, Outputs, find_last_layer, last_gradient, last_layer_outputs
from fedveil.attacks.matching.attack import Visible
from fedveil.defense.base import BatchHook
from fedveil.defense.devices import on_device
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import Reconstruction
from fedveil.fl.seeding import torch_stream
from fedveil.fl.training import as_shares

STAND_INS = 32
"""Auxiliary images of a class, behind the defence, that stand for one before any is inverted."""


@dataclass(frozen=True, eq=False)
class WithShares:
    """An inversion that is told no whole labels, but what can be read of the shares: an `Inversion` of two turns.

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
        first = [_told(one, reading.expected(one)) for one in observations]
        found = self.inversion.invert(first, knowledge, visible)
        second = [_told(one, reading.of_images(one, own.images)) for one, own in zip(first, found, strict=True)]
        return self.inversion.invert(second, knowledge, visible)


@dataclass(frozen=True, eq=False)
class Reading:
    """Reads shares off updates.

    Attributes:
        batch: see `WithShares`.
        knowledge: with auxiliary images.
    """

    batch: BatchHook
    knowledge: Knowledge

    def expected(self, observation: Observation) -> Tensor:
        """Return the shares (B, k) to expect of images of these classes, moved so that they explain the bias's gradient.

        Where the update does not tell that gradient they stay as they are.
        """
        labels = labels_of(observation, self.knowledge).tolist()
        images, shares = zip(*map(self._stand_ins, labels), strict=True)
        expected = torch.stack([own.mean(0) for own in shares])
        layer = self._layer
        if layer is None or layer.bias not in observation.update.tensors:
            return expected
        likely = torch.stack([self._outputs(observation, own).probabilities.mean(0) for own in images])
        bias = last_gradient(observation.update, layer).bias
        assert bias is not None  # it is in the update
        off = (likely.double() - expected).mean(0) - bias
        return on_simplex(expected + off)

    def of_images(self, observation: Observation, images: Tensor) -> Tensor:
        """Return the shares (B, k) with which these images (B, C, H, W) explain the last layer's gradient best.

        Where the update does not tell that, they are what they were.
        """
        assert observation.shares is not None
        layer = self._layer
        if layer is None or layer.weight not in observation.update.tensors:
            return observation.shares
        outputs = self._outputs(observation, images)
        if outputs.inputs is None:
            return observation.shares
        gradient, inputs = last_gradient(observation.update, layer), outputs.inputs
        assert gradient.weight is not None  # it is in the update
        sums = gradient.weight
        if gradient.bias is not None:
            sums = torch.cat([sums, gradient.bias[:, None]], dim=1)
            inputs = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=inputs.dtype)], dim=1)
        errors = len(images) * (sums @ torch.linalg.pinv(inputs, rtol=1e-6)).T
        return on_simplex(outputs.probabilities - errors)

    def _outputs(self, observation: Observation, images: Tensor) -> Outputs:
        target = replace(self.knowledge.model, module=on_device(self.knowledge.model.module, torch.device("cpu")))
        known = {name: own.detach().cpu() for name, own in target.known(observation.weights).items()}
        return last_layer_outputs(target, known, images.cpu(), batch_size=len(images))

    @cached_property
    def _layer(self) -> LastLayer | None:
        target = replace(self.knowledge.model, module=on_device(self.knowledge.model.module, torch.device("cpu")))
        try:
            return find_last_layer(target)
        except FedveilError:
            return None

    def _stand_ins(self, label: int) -> tuple[Tensor, Tensor]:
        if label not in self._drawn:
            known, model = self.knowledge.auxiliary_images(), self.knowledge.model
            of_class = (known.labels == label).nonzero().flatten()
            some = known.take(of_class if len(of_class) else torch.arange(len(known)))
            stream = torch_stream(self.knowledge.seed, "shares", label)
            x, y = some.batch(torch.randint(len(some), (STAND_INS,), generator=stream))
            images, labels = self.batch(
                on_device(model.module, torch.device("cpu")), x, torch.full_like(y, label), stream
            )
            self._drawn[label] = images, as_shares(labels, model.classes).double()
        return self._drawn[label]

    @cached_property
    def _drawn(self) -> dict[int, tuple[Tensor, Tensor]]:
        return {}


def on_simplex(shares: Tensor) -> Tensor:
    """Return the nearest shares: rows (n, k) that are at least 0 and of sum 1 (Held et al. 1974; Duchi et al. 2008, fig. 1).

    >>> on_simplex(torch.tensor([[0.8, 0.4, -0.3]]))
    tensor([[0.7000, 0.3000, 0.0000]])
    """
    ordered = shares.sort(dim=1, descending=True).values
    excess = (ordered.cumsum(1) - 1) / torch.arange(1, shares.shape[1] + 1, device=shares.device)
    last = (ordered > excess).sum(1, keepdim=True) - 1
    return (shares - excess.gather(1, last)).clamp_min(0)


def _told(observation: Observation, shares: Tensor) -> Observation:
    return replace(observation, shares=shares.float())
