"""What is looked at: the update as it was sent, as it was understood, and the classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedveil.attacks.audit.inputs import Updates, as_tensor, as_updates, names_in_order
from fedveil.attacks.diagnosis.wording import PYTHON, Wording
from fedveil.attacks.diagnosis.zeros import Zeros, holes, read_zeros
from fedveil.attacks.labels.last_layer import LastGradient, LastLayer, find_last_layer, last_gradient
from fedveil.attacks.target.model import TargetModel
from fedveil.fl.errors import FedveilError, brief
from fedveil.fl.messages import ClientUpdate
from fedveil.fl.training import Weights

RANK = 1e-6
"""Singular values below this part of the largest are rounding, for float32."""
HALF = 4e-3
"""Relative rounding of a client that computes in half precision, by bfloat16, whose numbers have 8 bits."""
MOST = 4096
"""Rows or columns of which a rank is computed."""
LAWFUL = 1e-6
"""Share of energy by which float32 sums may miss the law of `Evidence.remainder`; half precision misses it by more."""


@dataclass(frozen=True, eq=False)
class Sent:
    """An update with what keeps an audit from taking it set aside.

    Attributes:
        update: understood as `fedveil.audit` does; entries that are not finite are 0. None where it is 0 altogether.
        broken: entries that are not finite, by parameter name.
        buffers: change of the model's buffers by name, whole numbers too; empty where none was sent.
        guessed: its kind was not said.
    """

    update: ClientUpdate | None
    broken: Mapping[str, int]
    buffers: Mapping[str, Tensor]
    guessed: bool


def read_sent(model: nn.Module, given: Updates) -> Sent:
    """Take in one update, however broken its numbers are.

    Raises:
        FedveilError: its names or shapes are not the model's, or its kind can't be told; see `fedveil.audit`.
    """
    if isinstance(given, ClientUpdate):
        raw: dict[str, Any] = {**given.tensors, **given.buffers}
    elif isinstance(given, Mapping):
        raw = dict(given)
    elif isinstance(given, list | tuple):
        raw = dict(zip(names_in_order(model, len(given)), given, strict=True))
    else:
        raise FedveilError(f"update: expected an fv.Update, a dict or a list of arrays, got {type(given).__name__}")
    parameters, state = dict(model.named_parameters()), model.state_dict()
    for name, value in raw.items():
        if name not in parameters and name not in state:
            raise FedveilError(f"update: the model has no {brief(repr(name))}")
        if name not in parameters and tuple(np.shape(value)) != tuple(state[name].shape):
            raise FedveilError(f"update: {name}: expected {tuple(state[name].shape)}, got {tuple(np.shape(value))}")
    whole, broken = {}, {}
    for name, value in raw.items():
        tensor = as_tensor(f"update: {name}", value)
        bad = ~tensor.isfinite()
        if name in parameters and bool(bad.any()):
            broken[name] = int(bad.sum())
        whole[name] = torch.where(bad, torch.zeros_like(tensor), tensor)
    if not any(bool(whole[name].any()) for name in parameters if name in whole):
        return Sent(None, broken, {}, not isinstance(given, ClientUpdate))
    kept = {name: tensor for name, tensor in whole.items() if name in parameters}
    if isinstance(given, ClientUpdate):
        return Sent(as_updates(model, replace(given, tensors=kept))[0], broken, dict(given.buffers), False)
    (update,) = as_updates(model, [*whole.values()] if isinstance(given, list | tuple) else whole)
    # Weights after training were told from a change by their size, and what is there of the buffers is of the same kind.
    change = all(torch.equal(tensor, kept[name].float()) for name, tensor in update.tensors.items())
    buffers = {
        name: whole[name] if change else whole[name] - buffer.detach().cpu()
        for name, buffer in model.named_buffers()
        if name in whole
    }
    return Sent(update, broken, buffers, True)


@dataclass(frozen=True, eq=False)
class Evidence:
    """All that the examinations share.

    Attributes:
        model: as it was given, in the mode it was in.
        target: the classifier as attacks need it, on the CPU.
        weights: that the server sent, by name.
        sent: the update.
        update: the same, understood.
        batch_size: B, images that are said to be behind it.
        shape_guessed: the images' shape was not said.
        words: for what the caller may say.
    """

    model: nn.Module
    target: TargetModel
    weights: Weights
    sent: Sent
    update: ClientUpdate
    batch_size: int
    shape_guessed: bool
    words: Wording = PYTHON

    @cached_property
    def gradient(self) -> dict[str, Tensor]:
        """The mean gradient over the client's steps by parameter name, float64."""
        return {name: self.update.gradient_scale * t.double() for name, t in self.update.tensors.items()}

    @cached_property
    def norm(self) -> float:
        """Of `gradient`."""
        return float(torch.stack([tensor.square().sum() for tensor in self.gradient.values()]).sum().sqrt())

    @cached_property
    def head(self) -> tuple[LastLayer, LastGradient] | FedveilError:
        """The last layer and its gradient, or why there is none."""
        try:
            layer = find_last_layer(self.target)
            return layer, last_gradient(self.update, layer)
        except FedveilError as error:
            return error

    @cached_property
    def head_rows(self) -> Tensor | None:
        """(k, d + 1) of the last layer's gradient, its bias's last, of what is there of the two; None without that layer."""
        if isinstance(self.head, FedveilError):
            return None
        gradient = self.head[1]
        parts = [gradient.weight, None if gradient.bias is None else gradient.bias[:, None]]
        return torch.cat([part for part in parts if part is not None], dim=1)

    @cached_property
    def remainder(self) -> float | None:
        """Energy of the last layer's sum over classes, in units of the layer's; None where no law says what it is.

        Cross-entropy of a softmax leaves softmax - onehot at each image, which sums to 0 over classes; so do sums over
        images, steps of plain SGD, and clipped ones. Noise that is independent from entry to entry has as much energy in
        its sum over classes as in all entries, so this is the share that is noise. Entries that were left out make it
        anything up to k.
        """
        if self.head_rows is None or not self.update.plain:
            return None
        energy = float(self.head_rows.square().sum())
        return None if energy == 0 else float(self.head_rows.sum(dim=0).square().sum()) / energy

    @cached_property
    def head_holes(self) -> int:
        """Zeros of the last layer that softmax cross-entropy does not leave."""
        return 0 if self.head_rows is None or not self.update.plain else holes(self.head_rows)

    @cached_property
    def zeros(self) -> Zeros:
        """Where entries are 0, and whether they were left out."""
        return read_zeros(self.gradient, self.head_holes)

    def halved(self, gradient: Tensor) -> bool:
        """Whether the numbers behind a part of `gradient` went through half precision."""
        sent = gradient / self.update.gradient_scale
        return any(bool((sent.to(kind).to(sent) == sent).all()) for kind in (torch.bfloat16, torch.float16))

    def rank(self, gradient: Tensor) -> int | None:
        """The numerical rank of an (m, d) part of `gradient`, see `rank_of`; None where it would take too long."""
        return rank_of(gradient, HALF if self.halved(gradient) else RANK)

    @property
    def lawful(self) -> bool:
        """The last layer's gradient is that of a softmax cross-entropy as far as sums and zeros tell: nothing hides it."""
        return self.remainder is not None and self.remainder <= LAWFUL and not (self.head_holes or self.zeros.left_out)


def rank_of(weight: Tensor, rounding: float) -> int | None:
    """The numerical rank of an (m, d) gradient, from the smaller of its two products with itself.

    Args:
        weight: of the layer.
        rounding: part of the largest singular value below which another is rounding.
    """
    if min(weight.shape) > MOST:
        return None
    square = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
    sizes = torch.linalg.eigvalsh(square).clamp_min(0).sqrt()
    return int((sizes > rounding * sizes.max()).sum())
