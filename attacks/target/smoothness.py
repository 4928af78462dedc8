"""Whether a network is smooth: whether curvature, which L-BFGS lives on, tells anything about matching its gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from fedveil.attacks.target.model import TargetModel
from fedveil.fl.seeding import torch_stream

Suits = Literal["all", "smooth", "bent"]
"""Networks that an attack is best at; it runs on all."""

FAR, NEAR = 0.01, 0.0025
"""Steps along a random direction, in pixel units, over which the slope's change is compared."""
IMAGES = (1, 8, 64)
"""One image shows most kinks; only where it shows none are more looked at, and most where no slope changes at all: networks
of few units meet few kinks."""
BENT = 0.3
"""Relative difference of the two rates of change above which there are kinks. Independent kinks alone make it
sqrt(1 - `NEAR` / `FAR`) = 0.87 in the mean; a jump of the second derivative alone, as in ELUs, hardly shows."""
ROUNDING = 1e-5
"""Part of a slope whose change is none: single precision tells no more."""


def is_smooth(target: TargetModel, weights: Mapping[str, Tensor]) -> bool:
    """Return whether the slopes of a classifier change evenly with its images, instead of in jumps.

    The slopes are those of random sums of logits with respect to noisy images of all brightnesses. Along a random direction
    their change per step, g(h) - g(-h) over 2 h, tends to a limit where they can be differentiated: over two small h it is
    the same but for O(h^2). Where there are kinks, as in rectifiers, a step meets a random number of them in
    proportion to its length; their sum grows as its root, and the two differ by nearly as much as they are. Kinks that no
    image comes near, such as those of a clamp with wide bounds, leave a network smooth, and so does a linear one.

    Args:
        target: the classifier.
        weights: parameters and buffers by name, on its device.
    """
    few, some, many = IMAGES
    with torch.enable_grad():
        found = _unevenness(target, weights, few)
        if found <= BENT:
            found = _unevenness(target, weights, some)
        if found == 0:
            found = _unevenness(target, weights, many)
    return found <= BENT


def _unevenness(target: TargetModel, weights: Mapping[str, Tensor], count: int) -> float:
    """How far the slope's changes per step over `FAR` and over `NEAR` differ, relative to the latter."""
    stream = torch_stream(0, "kinks", count)
    like = next(iter(weights.values()))
    shape = (count, *target.image_shape)
    brightness = torch.rand((count, 1, 1, 1), generator=stream)
    images = (brightness + 0.25 * torch.randn(shape, generator=stream)).to(like)
    along = torch.randn(shape, generator=stream).to(like)
    mixed = torch.randn((count, target.classes), generator=stream).to(like)

    def slope(step: float) -> Tensor:
        x = (images + step * along).requires_grad_(True)
        (found,) = torch.autograd.grad((mixed * target.logits(weights, x)).sum(), x)
        return found

    ends = {step: (slope(step), slope(-step)) for step in (FAR, NEAR)}
    far, near = ((after - before) / (2 * step) for step, (after, before) in ends.items())
    if 2 * FAR * far.norm() <= ROUNDING * ends[FAR][0].norm():
        return 0.0
    size = float(near.norm())
    # Over the near step there may be no kink at all.
    return float((far - near).norm()) / size if size > 0 else math.inf
