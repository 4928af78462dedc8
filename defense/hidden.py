"""A network's hidden features: where they are read, and how to read them.

Any classifier will do: its stages are found by watching images pass, with forward hooks that are gone afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

from fedveil.fl.errors import FedveilError


@dataclass(frozen=True)
class Stage:
    """Where features are read: at the last result of this size that a module gives.

    Attributes:
        module: its name in the network. One module may end several stages, such as a pooling that is used again.
        size: (h, w) of its result, or (D,).
    """

    module: str
    size: tuple[int, ...]


@contextmanager
def watching(
    model: nn.Module, note: Callable[[str, Tensor], None], modules: Collection[str] | None = None
) -> Iterator[None]:
    """Within, ``note`` is told of each result (n, C, h, w) or (n, D) that a part of the model gives, in their order.

    Args:
        model: whose parts; not the whole.
        note: takes a module's name and the result.
        modules: names of those to watch; None for all.
    """

    def noting(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, result: Any) -> None:
            if isinstance(result, Tensor) and result.ndim in (2, 4):
                note(name, result)

        return hook

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if name and (modules is None or name in modules):
                hooks.callback(module.register_forward_hook(noting(name)).remove)
        yield


def features_by_stage(model: nn.Module, images: Tensor) -> dict[Stage, Tensor]:
    """Return what a classifier holds where its stages end, from the image to the logits, (n, ...) each.

    A stage ends where the image is halved, or for a network without images inside, at each hidden layer: of the modules
    whose results have the same size in the end, the last one is taken.

    Args:
        model: a classifier.
        images: (n, C, H, W) in [0, 1].

    Raises:
        FedveilError: nothing inside the model gives features.
    """
    last: dict[tuple[int, ...], tuple[str, Tensor]] = {}

    def note(name: str, result: Tensor) -> None:
        last.pop(_size(result), None)
        last[_size(result)] = name, result

    with watching(model, note):
        logits = model(images)
    no_features = {(logits.shape[1],), (math.prod(images.shape[1:]),)}  # the logits, and the image laid flat
    found = {Stage(name, size): result for size, (name, result) in last.items() if size not in no_features}
    spatial = {stage: result for stage, result in found.items() if len(stage.size) == 2}
    if not found:
        raise FedveilError(
            f"model {type(model).__name__}: none of its modules gives features of images; allowed: one with a hidden layer"
            " that is a module of its own, its result (n, C, h, w) or (n, D)"
        )
    return spatial or found


@torch.no_grad()
def stages_of(model: nn.Module, image_shape: tuple[int, int, int]) -> tuple[Stage, ...]:
    """Return where a network's stages end, from the image to the logits, see `features_by_stage`.

    Args:
        model: a classifier.
        image_shape: (C, H, W).

    Raises:
        FedveilError: nothing inside the model gives features.
    """
    device = next(model.parameters()).device
    return tuple(features_by_stage(model, torch.full((1, *image_shape), 0.5, device=device)))


def features_at(model: nn.Module, images: Tensor, stages: Sequence[Stage]) -> list[Tensor]:
    """Return (n, D) per stage, of images (n, C, H, W) in [0, 1]."""
    found: dict[Stage, Tensor] = {}

    def note(name: str, result: Tensor) -> None:
        found[Stage(name, _size(result))] = result.flatten(1)

    with watching(model, note, {stage.module for stage in stages}):
        model(images)
    return [found[stage] for stage in stages]


def features_of(model: nn.Module, images: Tensor, modules: Sequence[str] = ()) -> list[Tensor]:
    """Return (n, D) per module, the last result of each, of images (n, C, H, W) in [0, 1].

    Args:
        model: a classifier.
        images: the images.
        modules: names in the model; none takes the ends of its stages.

    Raises:
        FedveilError: the model has no module of that name, it gives no features, or nothing inside does.
    """
    if not modules:
        return [result.flatten(1) for result in features_by_stage(model, images).values()]
    found: dict[str, Tensor] = {}

    def note(name: str, result: Tensor) -> None:
        found[name] = result.flatten(1)

    with watching(model, note, modules):
        model(images)
    if missing := [name for name in modules if name not in found]:
        allowed = ", ".join(name for name, _ in model.named_modules() if name)
        raise FedveilError(
            f"model {type(model).__name__}: {missing[0]!r} gives no features; allowed: those of {allowed} that do"
        )
    return [found[name] for name in modules]


def _size(result: Tensor) -> tuple[int, ...]:
    return tuple(result.shape[2:]) if result.ndim == 4 else tuple(result.shape[1:])


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Within, images may pass a model that trains once more, and leave nothing behind.

    Running statistics do not count them, no unit is dropped and no noise is drawn: a pass then draws nothing at random, so
    that a step can be replayed. What passes twice is the same both times, but for dropout and noise.

    Args:
        model: whose mode stays.
    """
    counting = [
        part for part in model.modules() if isinstance(part, _NormBase) and part.training and part.track_running_stats
    ]
    for part in counting:
        part.track_running_stats = False
    try:
        with _NothingDropped():
            yield
    finally:
        for part in counting:
            part.track_running_stats = True


class _NothingDropped(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.randn_like:
            return torch.zeros_like(*args, **(kwargs or {}))
        if func in _DROPPING:
            return args[0] if args else (kwargs or {})["input"]
        return func(*args, **(kwargs or {}))


_DROPPING = (
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    torch.dropout,
)
