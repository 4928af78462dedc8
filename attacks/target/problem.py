"""What gradient matching starts from: weights, observed gradients and labels of many victims."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedveil.attacks.target.model import TargetModel

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Problem:
    """V victims (or victims times restarts) to match at once.

    Attributes:
        model: the classifier, on the device.
        weights: parameters and buffers by name, (V, ...) each if ``own_weights``, otherwise shared by all victims.
        target: observed gradient by name, (V, ...); it may lack parameters that the client froze.
        labels: (V, B) class numbers, or (V, B, K) shares of each class.
        own_weights: each victim has weights of its own.
        visible: masks by name, (V, ...) or broadcastable, of the entries to match; None for all.
        sized: the target is a gradient at these weights in length too; several steps, or one of unknown
            rate, tell the direction at most.
    """

    model: TargetModel
    weights: Tensors
    target: Tensors
    labels: Tensor
    own_weights: bool = False
    visible: Tensors | None = None
    sized: bool = True

    @property
    def trained(self) -> Tensors:
        """The weights whose gradient is matched."""
        return {name: self.weights[name] for name in self.target}

    @property
    def frozen(self) -> Tensors:
        """All others."""
        return {name: weight for name, weight in self.weights.items() if name not in self.target}

    def loss(self, trained: Tensors, frozen: Tensors, x: Tensor, y: Tensor) -> Tensor:
        """What one victim minimises: (B, C, H, W), (B,) or (B, K) to a scalar; see `TargetModel.loss`."""
        return self.model.loss({**frozen, **trained}, x, y)

    def take(self, at: Tensor | slice) -> Problem:
        """Return the problem of some victims: ``at`` (n,) are their numbers, int64; a slice gives views."""
        visible = self.visible and {n: m[at] if len(m) == len(self.labels) else m for n, m in self.visible.items()}
        return replace(
            self,
            weights={n: w[at] for n, w in self.weights.items()} if self.own_weights else self.weights,
            target={n: t[at] for n, t in self.target.items()},
            labels=self.labels[at],
            visible=visible,
        )

    def to(self, dtype: torch.dtype) -> Problem:
        """Return the problem in another floating type; images are then to be of that type too."""

        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(dtype) if tensor.is_floating_point() else tensor

        def each(tensors: Tensors) -> Tensors:
            return {name: cast(tensor) for name, tensor in tensors.items()}

        return replace(
            self,
            weights=each(self.weights),
            target=each(self.target),
            labels=cast(self.labels),
            visible=self.visible and each(self.visible),
        )
