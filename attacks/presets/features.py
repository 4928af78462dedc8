"""What the last layer's gradient says of its inputs: the features of an image, exactly, where there is only one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedveil.attacks.engine.distances import Distance
from fedveil.attacks.labels.last_layer import find_last_layer
from fedveil.attacks.target.problem import Problem, Tensors
from fedveil.fl.errors import FedveilError

_SHORT = 0.1
"""A bias entry of the dummy gradient counts as no smaller than this part of the observed one: quotients stay finite."""


@dataclass(frozen=True)
class FeatureDistance:
    """A distance of gradients, and how far the features are from each other that their last layers tell.

    Cross-entropy leaves (p_k - y_k) f at row k of a last linear layer and p_k - y_k at its bias, f being the layer's input.
    So their quotient is f for one image (Phong et al. 2017), and a mean of features for a batch. Matching it weighs what a
    trained network's tiny gradients hide. The rows of classes that occur are told by negative biases; with these as shares
    s_k the distance is sum s_k |f_k - seen f_k|^2 / sum s_k |seen f_k|^2.

    Attributes:
        distance: of all entries.
        share: weight of the features' distance.
        weight: name of the last layer's weight (k, d).
        bias: name of its bias (k,).
    """

    distance: Distance
    share: float
    weight: str
    bias: str

    def __call__(self, gradient: Tensors, target: Tensors) -> tuple[Tensor, Tensors]:
        """See `Distance`."""
        value, slope = self.distance(gradient, target)
        bias, seen_bias = gradient[self.bias], target[self.bias]
        there = (-seen_bias).clamp_min(0)
        shortest = torch.where(there > 0, _SHORT * there, 1)
        long = -bias > shortest
        quotient = torch.where(long, bias, -shortest)
        seen = target[self.weight].flatten(2) / torch.where(there > 0, seen_bias, -1)[..., None]
        features = gradient[self.weight].flatten(2) / quotient[..., None]
        gap = features - seen
        size = (there * seen.square().sum(2)).sum(1)
        factor = self.share * there / torch.where(size > 0, size, 1)[:, None]
        by_weight = 2 * (factor / quotient)[..., None] * gap
        by_bias = torch.where(long, -(by_weight * features).sum(2), 0)
        added = {self.weight: by_weight.view_as(gradient[self.weight]), self.bias: by_bias}
        return (
            value + (factor * gap.square().sum(2)).sum(1),
            {name: one + added[name] if name in added else one for name, one in slope.items()},
        )


def with_features(problem: Problem, distance: Distance, share: float) -> Distance:
    """Return the distance with ``share`` times that of features; without it where the update does not tell them."""
    try:
        layer = find_last_layer(problem.model)
    except FedveilError:
        return distance
    if share == 0 or layer.weight not in problem.target or layer.bias not in problem.target:
        return distance
    return FeatureDistance(distance, share, layer.weight, layer.bias)
