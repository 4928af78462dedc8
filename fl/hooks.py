"""What local training asks of a defence. The defences themselves live one floor up, in `fedveil.defense`."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from fedveil.fl.data.images import Images
from fedveil.fl.messages import ClientUpdate


class ClientHooks(Protocol):
    """The five places where a defence may act on a client. Each is the identity unless a defence says otherwise."""

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

    def loss(self, loss: Tensor, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """Return the scalar that local training minimises, given the mean cross-entropy ``loss`` of ``logits``."""

    def update(self, update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
        """Return what leaves the client instead of ``update``."""

    def output(self, logits: Tensor) -> Tensor:
        """Return the logits (n, k) that a finished model answers with."""


class NoHooks:
    """The identity in all five places."""

    def images(self, shard: Images) -> Images:
        """See `ClientHooks.images`."""
        return shard

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        """See `ClientHooks.data`."""
        return x

    def loss(self, loss: Tensor, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """See `ClientHooks.loss`."""
        return loss

    def update(self, update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
        """See `ClientHooks.update`."""
        return update

    def output(self, logits: Tensor) -> Tensor:
        """See `ClientHooks.output`."""
        return logits
