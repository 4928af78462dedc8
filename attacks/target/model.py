"""Any classifier as an attack needs it: its gradient as the client computed it, fit for `torch.func`."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from textwrap import shorten
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from fedveil.attacks.target.elementary import Elementary
from fedveil.defense.base import LossHook
from fedveil.fl.errors import FedveilError

Mode = Literal["train", "eval"]
"""How the client's BatchNorm and dropout ran."""


@dataclass(frozen=True, eq=False)
class TargetModel:
    """The classifier under attack.

    Attributes:
        module: made fit by `target_model`; its weights are whatever it was made with, an observation brings its own.
        image_shape: (C, H, W).
        classes: number of classes.
        mode: see `Mode`.
        defended: what the client's defence makes of the loss, where the attacker reckons with that.
    """

    module: nn.Module
    image_shape: tuple[int, int, int]
    classes: int
    mode: Mode = "train"
    defended: LossHook | None = None

    def logits(self, weights: Mapping[str, Tensor], x: Tensor, *, watch: TorchFunctionMode | None = None) -> Tensor:
        """Return (n, classes) logits of (n, C, H, W) images in [0, 1].

        Args:
            weights: parameters and buffers by name; the module's own stand in for those that are not given.
            x: the images.
            watch: sees the model's own calls, before any is replaced by elementary operations.
        """
        with Elementary(), watch or nullcontext():
            logits: Tensor = functional_call(self.module, dict(weights), (x,))
        return logits

    def loss(self, weights: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        """Return the scalar that the client minimises: the mean cross-entropy, or what its defence makes of that.

        Args:
            weights: see `logits`.
            x: (n, C, H, W) images in [0, 1].
            y: (n,) labels, or (n, classes) shares of each class.
        """
        if self.defended is None:
            return _cross_entropy(self.logits(weights, x), y)
        named = {f"module.{name}": weight for name, weight in weights.items()}
        with Elementary():
            loss: Tensor = functional_call(_Minimised(self.module, self.defended), named, (x, y))
        return loss

    def known(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return those of ``weights`` that the module has: a tensor with two names goes by its first."""
        names = {name for name, _ in [*self.module.named_parameters(), *self.module.named_buffers()]}
        return {name: weight for name, weight in weights.items() if name in names}


class _Minimised(nn.Module):
    """A classifier and a changed loss: the hook sees the model with the weights that are passed."""

    def __init__(self, module: nn.Module, defended: LossHook) -> None:
        super().__init__()
        self.module, self._defended = module, defended

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        logits = self.module(x)
        return self._defended(_cross_entropy(logits, y), self.module, x, y, logits)


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    shares = y if y.is_floating_point() else (y[:, None] == torch.arange(logits.shape[1], device=y.device)).to(logits)
    # Not by log_softmax, whose backward has a fused kernel that its own derivative does not share.
    return (shares * (torch.logsumexp(logits, 1, keepdim=True) - logits)).sum(1).mean()


class Normalise:
    """A forward pre-hook: (x - mean) / std per channel, for models whose clients normalise outside of them.

    Args:
        mean: one number per channel, in units of the [0, 1] pixel range.
        std: likewise, above 0.
        channels: so many there are.

    Raises:
        FedveilError: there are more or fewer numbers than channels, or a deviation is not above 0.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], channels: int) -> None:
        mean, std = (_numbers(values) for values in (mean, std))
        if not len(mean) == len(std) == channels:
            raise FedveilError(
                f"normalize: {len(mean)} mean(s) and {len(std)} deviation(s) for images of {channels} channel(s)"
            )
        if min(std) <= 0:
            raise FedveilError(f"normalize: deviations have to be above 0, given {tuple(std)}")
        self._mean, self._std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the module's arguments with the images normalised."""
        x, *rest = args
        return (x - self._mean.to(x)) / self._std.to(x), *rest


def _numbers(values: Any) -> tuple[float, ...]:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise FedveilError(
            f"normalize: expected (means, deviations), each with a number per channel, got {values!r}"
        ) from error
    if not all(map(math.isfinite, numbers)):
        raise FedveilError(f"normalize: expected finite numbers, got {numbers}")
    return numbers


def target_model(
    module: nn.Module,
    *,
    image_shape: tuple[int, int, int],
    classes: int,
    mode: Mode = "train",
    normalize: tuple[Sequence[float], Sequence[float]] | None = None,
) -> TargetModel:
    """Make a classifier fit for attacks, as a copy: ``module`` stays as it is.

    Args:
        module: (n, C, H, W) images to (n, classes) logits, trained by cross-entropy.
        image_shape: (C, H, W).
        classes: number of classes.
        mode: ``train``: BatchNorm by the batch's own statistics; a batch of one image will do. ``eval``: by the
            running ones. Dropout is the identity in both.
        normalize: (means, deviations) per channel, if clients normalise images before they call the model.

    Raises:
        FedveilError: the module can't be copied, or ``normalize`` does not fit the images.
    """
    if mode not in ("train", "eval"):
        raise FedveilError(f"mode: {mode!r} is not allowed; allowed: train, eval")
    try:
        twin = copy.deepcopy(module)
    except Exception as error:  # whatever a user's module raises
        raise FedveilError(f"model: {type(module).__name__} can't be copied: {first_line(error)}") from error
    twin.train(mode == "train").requires_grad_(False)
    for part in twin.modules():
        if isinstance(part, _BatchNorm):
            # Or else it counts its batches in place, which no transformed function may.
            part.track_running_stats = False
        if getattr(part, "inplace", False) is True:
            part.inplace = False  # type: ignore[assignment]
    if normalize is not None:
        if not isinstance(normalize, tuple | list) or len(normalize) != 2:
            raise FedveilError(
                f"normalize: expected (means, deviations), each with a number per channel, got {normalize!r}"
            )
        twin.register_forward_pre_hook(Normalise(*normalize, image_shape[0]))
    return TargetModel(twin, image_shape, classes, mode)


def trainable(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of a module under attack with these weights, which a client's defence may differentiate by them."""
    twin = copy.deepcopy(module).requires_grad_(True)
    own = twin.state_dict()
    twin.load_state_dict({name: weight for name, weight in weights.items() if name in own}, strict=False)
    return twin


def first_line(error: BaseException) -> str:
    """What an error says, as the end of a sentence."""
    return shorten((str(error).strip() or type(error).__name__).splitlines()[0], 160, placeholder=" ...")
