"""The first layer that has weights: is it linear in every pixel, and where does each pixel enter it?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from fedveil.attacks.target.model import TargetModel
from fedveil.fl.errors import FedveilError
from fedveil.fl.seeding import torch_stream

_CLOSE = 1e-4
"""By how much float32 may miss what enters the layer, relative to its largest entry."""


@dataclass(frozen=True, eq=False)
class FirstLayer:
    """A linear layer into which each pixel goes once: input[i] = scale[i] * pixel[order[i]] + shift[i].

    Attributes:
        weight: name of its (m, d) weight, with d = C * H * W.
        bias: name of its (m,) bias.
        order: (d,) int64, the flat pixel that is behind each input.
        scale: (d,) float64, not 0.
        shift: (d,) float64.
    """

    weight: str
    bias: str
    order: Tensor
    scale: Tensor
    shift: Tensor

    def pixels(self, inputs: Tensor) -> Tensor:
        """Return the flat images behind inputs, both (..., d)."""
        return ((inputs - self.shift) / self.scale)[..., self.order.argsort()]


class _Trace(TorchFunctionMode):
    """Keeps the first call that any weight takes part in."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self._weights = {id(weight) for weight in weights}
        self.call: tuple[Callable[..., Any], dict[str, Any]] | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call ``func``, and look whether it takes a weight; asking one for its shape or type is no call."""
        asks = getattr(func, "__name__", "") == "__get__"
        if self.call is None and not asks and any(id(leaf) in self._weights for leaf in tree_leaves((args, kwargs))):
            self.call = func, {**dict(zip(("input", "weight", "bias"), args, strict=False)), **(kwargs or {})}
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def find_first_layer(target: TargetModel) -> FirstLayer:
    """Return the classifier's first layer with weights, where it is linear in all pixels and has a bias.

    What comes before it (flattening, normalisation by constants, any order of the pixels) is found by passing known images
    through it.

    Raises:
        FedveilError: saying what that layer is instead.
    """
    parameters = {name: parameter.detach() for name, parameter in target.module.named_parameters()}
    pixels = torch.Size(target.image_shape).numel()
    like = next(iter(parameters.values()))
    ramp = (torch.arange(pixels) / pixels).view(target.image_shape)
    random = torch.rand(target.image_shape, generator=torch_stream(0, "first layer"))
    probes = torch.stack([torch.zeros_like(ramp), torch.ones_like(ramp), ramp, random]).to(like)
    trace = _Trace(parameters.values())
    target.logits(parameters, probes, watch=trace)
    what = f"the first layer of {type(target.module).__name__}"
    if trace.call is None or trace.call[0] is not F.linear:
        raise FedveilError(f"analytic: {what} is not a linear one over all pixels")
    call = trace.call[1]
    names = {id(parameter): name for name, parameter in parameters.items()}
    weight, bias = (names.get(id(call.get(part))) for part in ("weight", "bias"))
    if weight is None or bias is None:
        raise FedveilError(f"analytic: {what} has no bias, whose gradient the pixels would have to be divided by")
    entered = call["input"].double().cpu()
    if entered.shape != (len(probes), pixels):
        raise FedveilError(
            f"analytic: {what} is linear in {tuple(entered.shape[1:])} numbers, not in all {pixels} pixels"
        )
    shift = entered[0]
    scale = entered[1] - shift
    order = ((entered[2] - shift) / scale * pixels).nan_to_num(-1, -1, -1).round().long()
    if order.sort().values.equal(torch.arange(pixels)):
        expected = scale * random.double().flatten()[order] + shift
        if torch.allclose(entered[3], expected, rtol=0, atol=_CLOSE * float(entered.abs().max())):
            return FirstLayer(weight, bias, order, scale, shift)
    raise FedveilError(f"analytic: pixels are mixed before they enter {what}")
