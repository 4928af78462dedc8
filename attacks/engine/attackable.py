"""Can this classifier be attacked, and are its derivatives right? If not, which layer is in the way?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from fedveil.attacks.engine.step import order_of, slopes_along
from fedveil.attacks.target.elementary import Elementary
from fedveil.attacks.target.model import TargetModel, first_line
from fedveil.attacks.target.problem import Problem
from fedveil.fl.errors import FedveilError
from fedveil.fl.seeding import torch_stream

TOLERANCE = 1e-3
"""Relative error of the slope: float32 rounding makes some 1e-6 of it, a wrong normalisation layer several per cent."""


def count_classes(target: TargetModel) -> int:
    """Return how many logits the classifier gives.

    Raises:
        FedveilError: it does not take the images, or does not give (n, classes) logits.
    """
    images = _images(target)
    try:
        with torch.no_grad():
            logits = target.logits({}, images)
    except Exception as error:  # whatever a user's model raises
        raise FedveilError(
            f"model: {type(target.module).__name__} does not take images of shape {target.image_shape}: {first_line(error)}"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 1 or logits.shape[1] < 2:
        gives = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise FedveilError(
            f"model: expected (n, classes) logits of at least two classes from {type(target.module).__name__}, got {gives}"
        )
    return logits.shape[1]


def check_attackable(target: TargetModel) -> None:
    """Take the derivative that each step of an attack takes, on a random image, and compare it with double backward.

    Raises:
        FedveilError: it can't be taken, or is wrong; the sentence names the layer.
    """
    x = _images(target)[None]
    weights = {name: parameter.detach() for name, parameter in target.module.named_parameters()}
    direction = _directions(weights)
    labels = torch.zeros((1, 1), dtype=torch.int64, device=x.device)
    problem = Problem(target, weights, direction, labels)
    try:
        slope = slopes_along(problem, x, direction, order_of(problem))[0]
    except Exception as error:  # whatever a user's model raises
        layer = _culprit(target) or _whole(target)
        raise FedveilError(f"model: {layer} can't be attacked: {first_line(error)}") from error
    if not bool(slope.any()):
        raise FedveilError(
            f"model: {_whole(target)} can't be attacked: the images have no influence on its gradient, as far as derivatives"
            " tell (rounding or indexing?)"
        )
    along = {name: tensor[0] for name, tensor in direction.items()}
    if not _agree(
        [slope], lambda: _twice(lambda w, x: problem.loss(w, {}, x[0], labels[0]), weights, {0: x[0]}, along)
    ):
        layer = _culprit(target) or _whole(target)
        raise FedveilError(f"model: {layer} can't be attacked: PyTorch differentiates it wrongly in forward mode")


def _directions(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    stream = torch_stream(0, "attackable")
    return {name: torch.randn(w.shape, generator=stream)[None].to(w) for name, w in weights.items()}


def _twice(
    response: Callable[[dict[str, Tensor], dict[int, Tensor]], Tensor],
    weights: dict[str, Tensor],
    images: dict[int, Tensor],
    along: dict[str, Tensor],
    moving: dict[int, Tensor] | None = None,
) -> list[Tensor]:
    """The gradient by the images of the response's derivative along ``along`` (and ``moving``), by double backward."""
    inputs = {at: a.clone().requires_grad_(True) for at, a in images.items()}
    own = {name: w.clone().requires_grad_(True) for name, w in weights.items()}
    moved = [*own.values(), *(inputs.values() if moving else ())]
    tangents = [*along.values(), *(moving or {}).values()]
    first = torch.autograd.grad(response(own, inputs), moved, create_graph=True, materialize_grads=True)
    inner = torch.stack([(g * t).sum() for g, t in zip(first, tangents, strict=True)]).sum()
    return list(torch.autograd.grad(inner, list(inputs.values()), materialize_grads=True))


def _agree(mine: Sequence[Tensor], slow: Callable[[], Sequence[Tensor]]) -> bool:
    try:
        theirs = slow()
    except RuntimeError:
        # Some operations can be differentiated in forward mode alone: there is nothing to compare with.
        return True
    wrong = sum(float((m - t).norm()) for m, t in zip(mine, theirs, strict=True))
    return wrong <= TOLERANCE * sum(float(t.norm()) for t in theirs)


def _culprit(target: TargetModel) -> str | None:
    """Name the innermost layer, first in order of execution, that can't be differentiated, or is so wrongly."""
    calls: list[tuple[str, nn.Module, tuple[Any, ...], dict[str, Any]]] = []

    def note(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs, output: calls.append((name, module, args, kwargs))

    handles = [
        module.register_forward_hook(note(name), with_kwargs=True, always_call=True)
        for name, module in target.module.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            target.logits({}, _images(target))
    finally:
        for handle in handles:
            handle.remove()
    # A module's hook runs when it is done, so inner modules come before those that hold them.
    return next((_name(n, m) for n, m, args, kwargs in calls if not _differentiable(m, args, kwargs)), None)


def _differentiable(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    images = {at: a.detach() for at, a in enumerate(args) if isinstance(a, Tensor) and a.is_floating_point()}
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}

    def response(weights: dict[str, Tensor], images: dict[int, Tensor]) -> Tensor:
        own = tuple(images.get(at, a) for at, a in enumerate(args))
        with Elementary():
            output = functional_call(module, weights, own, kwargs)
        tensors = [o for o in (output if isinstance(output, tuple) else (output,)) if isinstance(o, Tensor)]
        # Twice curved, so that a layer that is linear in its inputs is differentiated like any other.
        return torch.stack([t.sin().sum() for t in tensors]).sum()

    def directional(moving: dict[int, Tensor]) -> Tensor:
        # Along the inputs as well as the weights: behind other layers, the inputs move with those layers' weights.
        derivative: Tensor = jvp(response, (weights, moving), (weights, images))[1]
        return derivative

    try:
        batched = {at: a[None] for at, a in images.items()}
        mine = vmap(grad(directional), randomness="error")(batched)
    except Exception:  # whatever a user's layer raises
        return False
    return _agree([mine[at][0] for at in images], lambda: _twice(response, weights, images, weights, images))


def _images(target: TargetModel) -> Tensor:
    """(1, C, H, W) at random, as the module wants them."""
    like = next(target.module.parameters())
    return torch.rand((1, *target.image_shape), generator=torch_stream(0, "attackable", "images")).to(like)


def _name(name: str, module: nn.Module) -> str:
    return f"layer {name} ({type(module).__name__})"


def _whole(target: TargetModel) -> str:
    return f"the model ({type(target.module).__name__})"
