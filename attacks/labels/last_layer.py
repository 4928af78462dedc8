"""The layer that gives the logits: which parameters it has, what an update says about them, and what images do to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fedveil.attacks.target.model import TargetModel
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import ClientUpdate


@dataclass(frozen=True)
class LastLayer:
    """The names of the layer's parameters in the model; None for one that it has not.

    Attributes:
        weight: (k, ...) of a linear layer, or of a convolution whose outputs are pooled to the logits.
        bias: (k,).
    """

    weight: str | None
    bias: str | None


@dataclass(frozen=True, eq=False)
class LastGradient:
    """The mean gradient of the last layer's parameters, in float64; None for one that the update lacks.

    For cross-entropy the bias has mean(softmax - onehot), the weight mean((softmax - onehot) outer input).

    Attributes:
        weight: (k, d).
        bias: (k,).
    """

    weight: Tensor | None
    bias: Tensor | None

    @property
    def rows(self) -> Tensor:
        """(k,): the bias, or else the row sums of the weight, which have its signs where the layer's inputs are positive."""
        if self.bias is not None:
            return self.bias
        assert self.weight is not None  # one of the two is there
        return self.weight.sum(dim=1)


@dataclass(frozen=True, eq=False)
class Outputs:
    """What the classifier makes of some images.

    Attributes:
        probabilities: (n, k) softmax, float64.
        inputs: (n, d) of the last layer, float64; None where it is not a linear layer of its own.
    """

    probabilities: Tensor
    inputs: Tensor | None


class _Trace(TorchFunctionMode):
    """Keeps the last call that makes ``classes`` outputs of a weight: its input, weight and bias."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.call: tuple[Tensor, Tensor, Tensor | None] | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call ``func``, and look at its weight."""
        named = {**dict(zip(("input", "weight", "bias"), args, strict=False)), **(kwargs or {})}
        if func in (F.linear, F.conv2d) and len(named["weight"]) == self.classes:
            self.call = (named["input"], named["weight"], named.get("bias"))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def find_last_layer(target: TargetModel) -> LastLayer:
    """Return the last layer of a classifier: of those that run, the last with as many outputs as there are classes.

    Where no linear layer or convolution has them, as in a product that a model writes out itself, the last matrix of so
    many rows among the parameters is taken, with the vector of that length that has the same prefix.

    Raises:
        FedveilError: there is none.
    """
    parameters = {name: parameter.detach() for name, parameter in target.module.named_parameters()}
    trace = _Trace(target.classes)
    grey = torch.full((1, *target.image_shape), 0.5).to(next(iter(parameters.values())))
    target.logits(parameters, grey, watch=trace)
    if trace.call is not None:
        _, weight, bias = trace.call
        # By identity: a weight that is computed, as under weight normalisation, is no parameter.
        names = {id(parameter): name for name, parameter in parameters.items()}
        found = LastLayer(names.get(id(weight)), None if bias is None else names.get(id(bias)))
    else:
        found = _by_shape(parameters, target.classes)
    if found.weight is None and found.bias is None:
        raise FedveilError(
            f"labels are unknown, and {type(target.module).__name__} has no last layer of {target.classes} outputs whose"
            " gradient would tell them: grant the labels"
        )
    return found


def _by_shape(parameters: Mapping[str, Tensor], classes: int) -> LastLayer:
    weight = next((n for n, p in reversed(list(parameters.items())) if p.ndim == 2 and len(p) == classes), None)
    prefix = "" if weight is None else weight.rpartition(".")[0]
    vectors = [n for n, p in parameters.items() if p.shape == (classes,) and n.rpartition(".")[0] == prefix]
    return LastLayer(weight, vectors[-1] if weight is not None and vectors else None)


def last_gradient(update: ClientUpdate, layer: LastLayer) -> LastGradient:
    """Return what an update says about the last layer.

    Raises:
        FedveilError: it lacks it.
    """
    weight, bias = (None if n is None else update.tensors.get(n) for n in (layer.weight, layer.bias))
    if weight is None and bias is None:
        names = " and ".join(name for name in (layer.weight, layer.bias) if name)
        raise FedveilError(
            f"labels are unknown, and the update lacks the last layer ({names}), which alone tells them: was it frozen?"
            " Grant the labels"
        )
    scale = update.gradient_scale
    return LastGradient(
        None if weight is None else scale * weight.double().flatten(1), None if bias is None else scale * bias.double()
    )


@torch.no_grad()
def last_layer_outputs(
    target: TargetModel, weights: Mapping[str, Tensor], images: Tensor, *, batch_size: int
) -> Outputs:
    """Pass (n, C, H, W) images through the classifier, ``batch_size`` at a time as the client does (BatchNorm sees it)."""
    probabilities, inputs = [], []
    for some in images.split(batch_size):
        trace = _Trace(target.classes)
        logits = target.logits(weights, some, watch=trace)
        probabilities.append(logits.double().softmax(dim=1))
        if trace.call is not None and trace.call[0].ndim == 2:
            inputs.append(trace.call[0].double())
    return Outputs(torch.cat(probabilities), torch.cat(inputs) if len(inputs) == len(probabilities) else None)
