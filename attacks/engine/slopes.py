"""The gradient by the images of < grad_w L(w, x), v >, v held fixed: two orders of the same two derivatives.

    forward over reverse:   d/de grad_x L(w + e v, x)      at e = 0
    reverse over forward:   grad_x  d/de L(w + e v, x)     at e = 0

The first has the passes of a plain gradient in it, forward and backward at e = 0, so that a traced step computes them once
for both. But it wants a forward derivative of every backward pass, which PyTorch has not for all operations. The second
wants less, and stands in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import Tensor
from torch.func import grad, jvp

from fedveil.attacks.target.problem import Tensors

_LOG = logging.getLogger(__name__)

Loss = Callable[[Tensors, Tensors, Tensor, Tensor], Tensor]
"""Weights, frozen weights, images and labels of one victim to a scalar."""
Order = Callable[[Loss, Tensors, Tensors, Tensor, Tensor, Tensors], Tensor]
"""A loss, its arguments and v to the slope, shaped as the images."""


def forward_over_reverse(
    loss: Loss, trained: Tensors, frozen: Tensors, x: Tensor, y: Tensor, direction: Tensors
) -> Tensor:
    """See the module; (B, C, H, W) images of one victim to their slope."""

    def by_images(weights: Tensors) -> Tensor:
        slope: Tensor = grad(lambda images: loss(weights, frozen, images, y))(x)
        return slope

    slope: Tensor = jvp(by_images, (trained,), (direction,))[1]
    return slope


def reverse_over_forward(
    loss: Loss, trained: Tensors, frozen: Tensors, x: Tensor, y: Tensor, direction: Tensors
) -> Tensor:
    """See the module; (B, C, H, W) images of one victim to their slope."""

    def along(images: Tensor) -> Tensor:
        derivative: Tensor = jvp(lambda weights: loss(weights, frozen, images, y), (trained,), (direction,))[1]
        return derivative

    slope: Tensor = grad(along)(x)
    return slope


AGREEMENT = 1e-3
"""Relative difference of the two orders that float32 rounding may make."""


def agreed(first: Callable[[], Tensor], second: Callable[[], Tensor]) -> bool:
    """The first slope can be computed, and equals the second but for rounding.

    Raises:
        Exception: whatever the second raises.
    """
    try:
        mine = first()
    except Exception as error:  # whatever PyTorch raises for an operation without that derivative
        _LOG.debug("a derivative in forward over reverse mode: %s", error)
        return False
    theirs = second()
    return bool((mine - theirs).norm() <= AGREEMENT * theirs.norm())
