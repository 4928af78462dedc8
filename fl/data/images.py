"""Images and labels in memory: bytes at rest, floats in [0, 1] when a batch is taken."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedveil.fl.errors import FedveilError
from fedveil.fl.sent_once import SentOnce


@dataclass(frozen=True)
class Images(SentOnce):
    """Labelled images.

    >>> import torch, fedveil as fv
    >>> images = fv.Images(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.arange(5) % 2)
    >>> len(images), images.shape
    (5, (1, 8, 8))

    Attributes:
        pixels: (n, C, H, W) uint8, C is 1 or 3.
        labels: (n,) int64, 0 to classes - 1.
        groups: (n,) int64 or None; images of one group (one patient, one block of slices) are near-copies of
            each other, and a split that must keep them together cuts between groups. An equal number in another split
            of the data set is the same group.
    """

    pixels: Tensor
    labels: Tensor
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4:
            raise FedveilError(
                f"pixels: expected (n, C, H, W) uint8, got {tuple(self.pixels.shape)} {self.pixels.dtype}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != (len(self.pixels),):
            raise FedveilError(
                f"labels: expected ({len(self.pixels)},) int64, got {tuple(self.labels.shape)} {self.labels.dtype}"
            )
        if self.groups is not None and self.groups.shape != self.labels.shape:
            raise FedveilError(f"groups: expected {tuple(self.labels.shape)}, got {tuple(self.groups.shape)}")

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def floats(self) -> Tensor:
        """All images as (n, C, H, W) float32 in [0, 1]."""
        return self.pixels.float() / 255.0

    def take(self, indices: Tensor) -> Images:
        """The images at ``indices`` (int64), in that order."""
        groups = None if self.groups is None else self.groups[indices]
        return Images(self.pixels[indices], self.labels[indices], groups)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """(b, C, H, W) float32 in [0, 1] and (b,) int64 labels."""
        return self.pixels[indices].float() / 255.0, self.labels[indices]


@dataclass(frozen=True)
class ImageData:
    """A data set by name, in its three splits.

    Attributes:
        name: as in the configuration, for example ``pneumoniamnist``.
        train: public, auxiliary and private images are cut from it (see `fedveil.fl.data.split_train`).
        val: may be empty.
        test: for utility only.
        classes: one name per label.
        published: the images are a public data set, so a grid of them may be logged by default.
        notes: one line each: warnings worth keeping with the results (a file that differs from the official
            one).
    """

    name: str
    train: Images
    val: Images
    test: Images
    classes: tuple[str, ...]
    published: bool
    notes: tuple[str, ...] = field(default=())
