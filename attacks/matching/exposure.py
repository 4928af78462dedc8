"""How bright an image is, where no gradient tells: after a normalisation, images x and c x leave the same update.

A convolution without bias, zeros at the border and a normalisation behind it send c x and x to the same features. With
GroupNorm that holds for each image, with BatchNorm for a whole batch. What a search ends with is then an accident of its
path. An attacker knows better: photographs and scans use most of their range of values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedveil.attacks.base import Knowledge, Observation
from fedveil.attacks.matching.attack import Visible
from fedveil.attacks.matching.yardstick import misfit
from fedveil.fl.data.images import Images
from fedveil.fl.messages import Reconstruction

BRIGHT = 0.995
"""Quantile of an image's values that has to be where it usually is; the very maximum would be noise of the search."""
USUAL = 0.92
"""Its mean over images of CIFAR-10 and of MNI152 (0.90 and 0.94), for an attacker that holds no images of the kind."""
TOLERANCE = 1.5
"""So many times as large the misfit may become: clipped pixels show, and so does what normalisation adds to variances."""


def exposed(
    observations: Sequence[Observation],
    found: Sequence[Reconstruction],
    knowledge: Knowledge,
    visible: Visible | None = None,
) -> list[Reconstruction]:
    """Return reconstructions as bright as images usually are, where those explain the updates about as well.

    What is scaled is marked so (``scale_guessed``): images that are darker than usual become too bright.

    First each image is scaled by itself, then less, so that no pixel is clipped, then whole batches; what fits worse by the
    yardstick stays as it was.

    Args:
        observations: of one number of local steps.
        found: a reconstruction of each, with its misfit for a loss.
        knowledge: what the attacker holds; auxiliary images tell it how bright images usually are.
        visible: see `misfit`.
    """
    left = list(range(len(observations)))
    result = list(found)
    for bright in (_each, _unclipped, _together):
        usual = [_usual(found[at].labels, knowledge.auxiliary) for at in left]
        scaled = [
            replace(found[at], images=_scaled(found[at].images, own, bright))
            for at, own in zip(left, usual, strict=True)
        ]
        losses = misfit([observations[at] for at in left], scaled, knowledge, visible) if left else []
        for at, one, loss in zip(tuple(left), scaled, losses, strict=True):
            if loss <= TOLERANCE * found[at].loss:
                result[at] = replace(one, loss=loss, scale_guessed=True)
                left.remove(at)
    return result


def usual_brightness(auxiliary: Images | None) -> float:
    """Return the `BRIGHT` quantile that images are taken to have: the mean over auxiliary ones, `USUAL` without any."""
    return USUAL if auxiliary is None else float(_each(auxiliary.floats()).mean())


def _usual(labels: Tensor, auxiliary: Images | None) -> Tensor:
    """That of images of these classes, (n,): of auxiliary images of the class if there are some, of all otherwise."""
    usual = torch.full(labels.shape, usual_brightness(auxiliary))
    if auxiliary is not None:
        brightness = _each(auxiliary.floats())
        for at, label in enumerate(labels.tolist()):
            if (own := brightness[auxiliary.labels == label]).numel():
                usual[at] = own.mean()
    return usual


def _scaled(images: Tensor, usual: Tensor, bright: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    now = bright(images, usual)
    factors = torch.where(now > 0, usual / now, 1)
    return (images * factors.view(-1, 1, 1, 1)).clamp(0, 1)


def _each(images: Tensor, _: Tensor | None = None) -> Tensor:
    """(n,) of (n, C, H, W)."""
    return torch.quantile(images.flatten(1), BRIGHT, dim=1)


def _unclipped(images: Tensor, usual: Tensor) -> Tensor:
    """(n,), more where the brightest pixel would leave the range of values."""
    return torch.maximum(_each(images, usual), usual * images.flatten(1).amax(1))


def _together(images: Tensor, usual: Tensor) -> Tensor:
    """(n,), one factor for a whole batch: its mean as usual, or less where its brightest image would leave the range."""
    return usual * torch.maximum(_each(images).mean() / usual.mean(), images.max())
