"""What local training asks of a defence. The defences themselves live one floor up, in `fedveil.defense`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from fedveil.fl.data.images import Images
from fedveil.fl.messages import ClientUpdate

Memory = Mapping[str, Tensor]
"""What a client keeps from one of its turns to the next, by names of its defence's own. It never leaves the client."""


@dataclass(frozen=True)
class Turn:
    """What a client holds when it is about to send, beside its images.

    Attributes:
        memory: what it kept of the last turn whose update the server took in; empty before the first.
        weights: as the server sent them, by name.
    """

    memory: Memory = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)


HOOKS = ("images", "data", "batch", "loss", "gradients", "update", "carry", "output")
"""The names of the methods below."""


class ClientHooks(Protocol):
    """The places where a defence may act on a client. Each is the identity unless a defence says otherwise."""

    def images(self, shard: Images) -> Images:
        """Return what the client trains on instead of its images ``shard``, the same at every call.

        One image for each, in their order, with its label; images that are not trained on at all are left out.
        """

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        """Return what the client computes on instead of ``x``.

        Args:
            x: (n, C, H, W) in [0, 1].
            y: (n,) labels; None where they are not known (test time).
            stream: the only source of randomness.

        Returns:
            (n, C, H, W) in [0, 1].
        """

    def batch(self, model: nn.Module, x: Tensor, y: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return what a step of training computes on instead of a batch that has passed `data`, and its labels.

        For what makes labels shares of several classes, or trains on more images than the batch has. It is not asked at
        test time, nor of an empty batch.

        Args:
            model: as it is before the step.
            x: (n, C, H, W) in [0, 1], n at least 1.
            y: (n,) labels, or (n, k) shares of the classes.
            stream: the only source of randomness.

        Returns:
            (m, C, H, W) in [0, 1] with m at least n, of which the first n stand for the batch's in their order; and their
            (m,) labels, or (m, k) shares of the classes, each row of sum 1.
        """

    def loss(self, loss: Tensor, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """Return the scalar that local training minimises, given the mean cross-entropy ``loss`` of ``logits``.

        Images and labels are those that the step computes on, see `batch`.
        """

    def gradients(
        self, loss: Tensor, model: nn.Module, x: Tensor, y: Tensor, expected: int, stream: torch.Generator
    ) -> tuple[Tensor, ...]:
        """Return along which direction a step goes down, of each parameter that is trained, in the model's order.

        Args:
            loss: what `loss` returned; its mean gradient is the direction unless a defence says otherwise.
            model: that computed it.
            x: (n, C, H, W) the step's images; there may be none where they are drawn by chance.
            y: (n,) their labels, or (n, k) shares of the classes.
            expected: how many images a step has on average.
            stream: the only source of randomness.
        """

    def update(self, update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
        """Return what leaves the client instead of ``update``."""

    def carry(self, update: ClientUpdate, turn: Turn, stream: torch.Generator) -> tuple[ClientUpdate, Memory]:
        """Return what leaves the client instead of ``update``, and what the client keeps for its next turn.

        `update` with nothing to keep, unless a defence remembers; such a one's `update` is a first turn.
        """

    def output(self, logits: Tensor) -> Tensor:
        """Return the logits (n, k) that a finished model answers with."""


def mean_gradients(loss: Tensor, model: nn.Module) -> tuple[Tensor, ...]:
    """Return the gradient of a loss by each parameter that is trained, in the model's order; zeros where it has none."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.autograd.grad(loss, trained, materialize_grads=True)


class NoHooks:
    """The identity in all places."""

    def images(self, shard: Images) -> Images:
        """See `ClientHooks.images`."""
        return shard

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        """See `ClientHooks.data`."""
        return x

    def batch(self, model: nn.Module, x: Tensor, y: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """See `ClientHooks.batch`."""
        return x, y

    def loss(self, loss: Tensor, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """See `ClientHooks.loss`."""
        return loss

    def gradients(
        self, loss: Tensor, model: nn.Module, x: Tensor, y: Tensor, expected: int, stream: torch.Generator
    ) -> tuple[Tensor, ...]:
        """See `ClientHooks.gradients`."""
        return mean_gradients(loss, model)

    def update(self, update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
        """See `ClientHooks.update`."""
        return update

    def carry(self, update: ClientUpdate, turn: Turn, stream: torch.Generator) -> tuple[ClientUpdate, Memory]:
        """See `ClientHooks.carry`."""
        return self.update(update, stream), {}

    def output(self, logits: Tensor) -> Tensor:
        """See `ClientHooks.output`."""
        return logits
