"""A gallery of candidate images: is the victim the one that a reconstruction resembles most?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedveil.attacks.scoring.metrics import check_images
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import Likeness

_HALF_A_PIXEL_STEP = 0.5 / 255.0
_CHUNK = 2048


@dataclass(frozen=True, eq=False)
class Gallery:
    """The untouched images among which a reconstruction is to be recognised.

    Attributes:
        pixels: (g, C, H, W) uint8, on the CPU.
    """

    pixels: Tensor

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4 or len(self.pixels) == 0:
            raise FedveilError(
                f"gallery: expected (g, C, H, W) uint8 with g > 0, got {tuple(self.pixels.shape)} {self.pixels.dtype}"
            )

    def nearest(self, images: Tensor) -> Tensor:
        """Return the (n,) int64 positions of the gallery images with the least MSE to each of ``images``.

        Args:
            images: (n, C, H, W) in [0, 1], on any device. The gallery is compared in chunks, so it need not
                fit there.

        Raises:
            FedveilError: the images are not in [0, 1] or differ in shape from the gallery's.
        """
        check_images("images to look up", images)
        if images.shape[1:] != self.pixels.shape[1:]:
            raise FedveilError(
                f"images to look up: expected {tuple(self.pixels.shape[1:])} as in the gallery, "
                f"got {tuple(images.shape[1:])}"
            )
        # |a - g|^2 up to |a|^2, which is the same for all g; around mid-grey float32 sums lose fewer digits
        queries = (images - 0.5).flatten(1)
        distances = []
        for chunk in torch.split(self.pixels, _CHUNK):
            candidates = (chunk.to(images.device).to(images.dtype) / 255.0 - 0.5).flatten(1)
            distances.append(candidates.square().sum(1) - 2.0 * queries @ candidates.T)
        return torch.cat(distances, 1).argmin(1)

    @cached_property
    def floats(self) -> Tensor:
        """(g, C, H, W) float32 in [0, 1]: the same tensor at every call, so that what was computed of it can be kept."""
        return self.pixels.float() / 255.0

    def most_alike(self, likeness: Likeness, count: int) -> Tensor:
        """Return the (``count``,) int64 positions of the images that ``likeness`` prefers.

        Raises:
            FedveilError: it returns something else than a finite number for each of ``count`` victims and each image.
        """
        scores = likeness(self.floats).cpu()
        if scores.shape != (count, len(self.pixels)) or not bool(scores.isfinite().all()):
            raise FedveilError(
                f"likeness: expected finite numbers {(count, len(self.pixels))}, got {tuple(scores.shape)}"
            )
        return scores.argmax(1)

    def same(self, a: Tensor, b: Tensor) -> Tensor:
        """Return (n,) bool: are the images at positions ``a`` and ``b`` equal pixel for pixel?

        Medical collections hold repeats under several numbers; finding any of them is finding the victim.
        """
        return (self.pixels[a.cpu()] == self.pixels[b.cpu()]).flatten(1).all(1)

    def check_untouched(self, originals: Tensor, positions: Tensor) -> None:
        """Refuse ``originals`` that are not the gallery's own images at ``positions``.

        This catches a defence that changed its input in place, and a victim that passed a transform before it
        was called the original: both would be scored against the perturbed image.

        Raises:
            FedveilError: an original differs from the gallery's image by half a grey level or more.
        """
        if not bool(((positions >= 0) & (positions < len(self.pixels))).all()):
            raise FedveilError(f"gallery_index: expected positions from 0 to {len(self.pixels) - 1}")
        expected = self.pixels[positions.cpu()].to(originals.device).to(originals.dtype) / 255.0
        if originals.shape != expected.shape:
            raise FedveilError(
                f"originals: expected {tuple(expected.shape)} as in the gallery, got {tuple(originals.shape)}"
            )
        touched = (originals - expected).abs().flatten(1).amax(1) >= _HALF_A_PIXEL_STEP
        if bool(touched.any()):
            raise FedveilError(
                f"originals: {int(touched.sum())} of {len(originals)} differ from the gallery; "
                "a defence must return new tensors, never write into its input"
            )
