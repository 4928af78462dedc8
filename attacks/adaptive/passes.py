"""What a data defence makes of the attacker's images: drawn once, and kept for whatever else is asked of the same images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from fedveil.attacks.adaptive.common_noise import CommonNoise
from fedveil.fl.seeding import torch_stream

Defend = Callable[[Tensor, Tensor | None, torch.Generator], Tensor]
"""See `Surrogate.data`."""
KEPT = 2**28
"""Bytes of defended images that are kept; what comes after is drawn anew each time it is asked for."""


class Passes:
    """Passes images through a defence as the attacker knows it.

    To recognise images in gradients takes one law per class and round, and each asks for the same images with the same
    noise. A learnt defence costs more than the gradient that follows, so its results are kept: by what the images hold, and
    by class only where the defence does something else to another class.

    Args:
        defend: the defence.
        seed: of the attacker.
    """

    def __init__(self, defend: Defend, seed: int) -> None:
        self._defend = defend
        self._seed = seed
        self._kept: dict[tuple[bytes, int | None, str, int], Tensor] = {}
        self._bytes = 0
        self._example: Tensor | None = None

    def common(self, images: Tensor, label: int | None, times: int) -> Iterator[Tensor]:
        """Yield ``times`` draws of what becomes of (n, C, H, W) images, whose noise all images share."""
        return self._drawn(images, label, "common", times)

    def own(self, images: Tensor, label: int | None, what: str, times: int) -> Iterator[Tensor]:
        """Yield ``times`` draws of what becomes of (n, C, H, W) images, each with noise of its own; ``what`` seeds it."""
        return self._drawn(images, label, f"own {what}", times)

    def reads_labels(self, images: Tensor) -> bool:
        """Whether the defence does something else to an image of another class, tried on the first image it met."""
        if self._example is None:
            self._example = images[:1].clone()
        return self._reads_labels

    @cached_property
    def _reads_labels(self) -> bool:
        assert self._example is not None
        zero, one = (self._pass(self._example, label, "labels", 0) for label in (0, 1))
        return not torch.equal(zero, one)

    def _drawn(self, images: Tensor, label: int | None, what: str, times: int) -> Iterator[Tensor]:
        told = label if self.reads_labels(images) else None
        content = hashlib.blake2b(images.cpu().numpy().tobytes(), digest_size=16).digest()
        for number in range(times):
            key = (content, told, what, number)
            if key in self._kept:
                yield self._kept[key]
                continue
            found = self._pass(images, label, what, number)
            if self._bytes + found.nbytes <= KEPT:
                self._kept[key] = found
                self._bytes += found.nbytes
            yield found

    def _pass(self, images: Tensor, label: int | None, what: str, number: int) -> Tensor:
        labels = None if label is None else torch.full((len(images),), label, device=images.device)
        stream = torch_stream(self._seed, "forward", what, number)
        if what == "common":
            with CommonNoise(len(images)):
                return self._defend(images, labels, stream)
        return self._defend(images, labels, stream)
