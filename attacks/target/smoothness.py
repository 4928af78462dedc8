"""Whether a network is smooth: whether curvature, which L-BFGS lives on, tells anything about matching its gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch.overrides import TorchFunctionMode

from fedveil.attacks.target.model import TargetModel

Suits = Literal["all", "smooth", "bent"]
"""Networks that an attack is best at; it runs on all."""

_BENT = (
    *("relu", "selu", "hardtanh", "hardsigmoid", "hardswish", "hardshrink", "softshrink", "threshold", "clamp"),
    *("max_pool", "maxpool", "maximum", "minimum", "amax", "amin", "abs", "round"),
)
"""Parts of names of operations whose derivative jumps."""


class _Bends(TorchFunctionMode):
    """Notes whether an operation with jumps in its derivative was called."""

    seen = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call ``func``, and look at its name."""
        self.seen |= any(part in getattr(func, "__name__", "") for part in _BENT)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def is_smooth(target: TargetModel) -> bool:
    """Return whether no operation of a classifier has jumps in its derivative.

    Where the derivative jumps, as in ReLUs, the gradient by the weights itself jumps from image to image.
    """
    weights = dict(target.module.named_parameters())
    bends = _Bends()
    target.logits(weights, torch.full((1, *target.image_shape), 0.5).to(next(iter(weights.values()))), watch=bends)
    return not bends.seen
