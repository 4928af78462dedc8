"""Training of unknown length: it goes on until a curve on held-out images is flat."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from fedveil.fl.data.images import Images
from fedveil.fl.progress import Pace
from fedveil.fl.stepping import Optimizer

Module = TypeVar("Module", bound=nn.Module)

TAIL = 1 / 3
"""The rate falls to 0 over so many steps more, as a part of those before."""
WARM = 20
"""Steps over which the rate rises."""
MEMORY = 0.1
"""The running mean of the weights reaches back over this part of the steps so far."""
LOOKS = 4
"""Looks at the held-out images from one doubling of the steps to the next."""
RISE = 0.1
"""Part of a known number of steps over which the rate rises."""
FIRST = 25
"""Steps before the first look."""
HELD_OUT = 0.2
MOST_HELD_OUT = 256
LEAST = 400
"""Before so many steps no curve counts as flat: where a defence hides much, it starts on a plateau."""


@dataclass(frozen=True)
class Curve:
    """How a training went, on images that were held out.

    Attributes:
        steps: at which the held-out error was measured, rising.
        errors: then.
        flat: the last doubling of the steps brought less than the tolerance. Otherwise the training was cut off, and a
            longer one would do better.
    """

    steps: tuple[int, ...]
    errors: tuple[float, ...]
    flat: bool

    @property
    def error(self) -> float:
        """The least of them: that of the weights that are kept."""
        return min(self.errors)


@dataclass(frozen=True, eq=False)
class Trained(Generic[Module]):
    """A module and how it got there.

    Attributes:
        module: with the weights that did best on held-out images, frozen.
        curve: of the training.
    """

    module: Module
    curve: Curve


def train_until_flat(
    module: Module,
    loss: Callable[[Module], Tensor],
    error: Callable[[Module], float],
    *,
    steps: int,
    tolerance: float,
    learning_rate: float,
    optimizer: Callable[..., Optimizer],
) -> Trained[Module]:
    """Minimise ``loss`` until ``error`` is flat.

    The rate is constant for as long as the error falls, and the error is that of a running mean of the weights, which
    stands in for a falling rate (Polyak averaging). Then the rate falls in earnest, over a third of the steps more.

    Args:
        module: to train, in place.
        loss: of one fresh batch, on the training images; a scalar.
        error: on the held-out images, of a module in evaluation mode.
        steps: at most so many in all, at least 1; the fall of the rate is among them.
        tolerance: flat is a curve whose last doubling of the steps brought less than this, relative.
        learning_rate: of the optimiser.
        optimizer: made of parameters and the keyword ``learning_rate``.
    """
    stepping = optimizer(module.parameters(), learning_rate=learning_rate)
    mean = copy.deepcopy(module).requires_grad_(False).eval()
    looks: dict[int, float] = {}
    best: dict[str, Tensor] = {}
    pace = Pace()

    def take(step: int, rate: float) -> None:
        stepping.zero_grad()
        loss(module).backward()
        stepping.step(rate)
        _towards(mean, module, 1 / (1 + MEMORY * step))
        pace.say(step / steps, f"step {step} of at most {steps}", most=True)

    @torch.no_grad()
    def look(step: int) -> None:
        nonlocal best
        looks[step] = error(mean)
        if looks[step] <= min(looks.values()):
            best = {name: value.clone() for name, value in mean.state_dict().items()}

    last = max(1, math.floor(steps / (1 + TAIL)))
    flat, step, due = False, 0, FIRST
    for step in range(1, last + 1):
        take(step, min(1.0, step / WARM))
        if step >= due or step == last:
            look(step)
            due = math.ceil(step * 2 ** (1 / LOOKS))
            flat = step >= LEAST and looks[step] > (1 - tolerance) * _until(looks, step / 2)
            if flat:
                break
    more = min(steps - step, math.ceil(TAIL * step)) if flat else steps - step
    for ahead in range(1, more + 1):
        take(step + ahead, math.cos(math.pi / 2 * ahead / more))
    if more:
        look(step + more)
    mean.load_state_dict(best)
    return Trained(mean, Curve(tuple(looks), tuple(looks.values()), flat))


@torch.no_grad()
def _towards(mean: nn.Module, module: nn.Module, part: float) -> None:
    for own, new in zip(mean.state_dict().values(), module.state_dict().values(), strict=True):
        if own.is_floating_point():
            own.lerp_(new, part)
        else:
            own.copy_(new)


def _until(looks: dict[int, float], step: float) -> float:
    """The least error that was seen up to a step."""
    return min((error for at, error in looks.items() if at <= step), default=math.inf)


def hold_out(images: Images, stream: torch.Generator) -> tuple[Images, Images]:
    """Return (images to train on, images to measure on), see `held_out`. With too few to spare any, both are all of them."""
    held = held_out(images, stream)
    if not bool(held.any()):
        return images, images
    return images.take((~held).nonzero()[:, 0]), images.take(held.nonzero()[:, 0])


def held_out(images: Images, stream: torch.Generator) -> Tensor:
    """Return which images are held out, (n,) bool: a fifth and at most `MOST_HELD_OUT`, whole groups at a time."""
    wanted = min(MOST_HELD_OUT, int(HELD_OUT * len(images)))
    groups = torch.arange(len(images)) if images.groups is None else images.groups
    _, group, sizes = groups.unique(return_inverse=True, return_counts=True)
    order = torch.randperm(len(sizes), generator=stream)
    chosen = order[sizes[order].cumsum(0) <= wanted]
    return torch.isin(group, chosen)


def train_for(
    module: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    *,
    steps: int,
    learning_rate: float,
    optimizer: Callable[..., Optimizer],
) -> None:
    """Minimise ``loss`` in a number of steps that is known beforehand: the rate rises over the first, then falls to 0.

    Args:
        module: to train, in place; it is left in training mode.
        loss: of one fresh batch; a scalar.
        steps: so many, at least 1.
        learning_rate: of the optimiser, its highest.
        optimizer: made of parameters and the keyword ``learning_rate``.
    """
    stepping = optimizer(module.parameters(), learning_rate=learning_rate)
    warm = max(1, math.ceil(RISE * steps))
    pace = Pace()
    for step in range(1, steps + 1):
        rate = step / warm if step <= warm else (1 + math.cos(math.pi * (step - warm) / (steps + 1 - warm))) / 2
        stepping.zero_grad()
        loss(module).backward()
        stepping.step(rate)
        pace.say(step / steps, f"step {step} of {steps}")
