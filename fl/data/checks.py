"""From arrays of unknown quality to checked `Images` and `ImageData`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedveil.fl.data.images import ImageData, Images
from fedveil.fl.errors import FedveilError

Array = NDArray[Any]


@dataclass(frozen=True)
class SplitArrays:
    """One split as a file holds it.

    Attributes:
        pixels: (n, H, W) grey, or (n, H, W, C) with C 1 or 3; must be uint8.
        labels: (n,) or (n, 1); must be integers that are not negative.
    """

    pixels: Array
    labels: Array


def checked_images(arrays: SplitArrays, *, where: str, split: str) -> Images:
    """Turn one split into `Images`.

    Args:
        arrays: the split.
        where: the file, for messages.
        split: ``train``, ``val`` or ``test``, for messages.

    Raises:
        FedveilError: a wrong dtype, a wrong shape, differing lengths or a negative label.
    """
    pixels, labels = arrays.pixels, arrays.labels
    images_key, labels_key = f"{where}: {split}_images", f"{where}: {split}_labels"
    if pixels.dtype != np.uint8:
        raise FedveilError(f"{images_key}: the dtype is {pixels.dtype}; allowed: uint8")
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.ndim != 4 or pixels.shape[3] not in (1, 3) or 0 in pixels.shape[1:]:
        raise FedveilError(
            f"{images_key}: the shape is {arrays.pixels.shape}; allowed: (n, H, W), (n, H, W, C) and (n, C, H, W), of 1 or 3"
            " channels"
        )
    if labels.dtype.kind not in "iu":
        raise FedveilError(f"{labels_key}: the dtype is {labels.dtype}; allowed: integers")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise FedveilError(f"{labels_key}: the shape is {labels.shape}; allowed: (n,) and (n, 1)")
    if len(labels) != len(pixels):
        raise FedveilError(f"{where}: {split} has {len(pixels)} images but {len(labels)} labels")
    wide = labels.astype(np.int64)
    if (wide < 0).any():
        raise FedveilError(f"{labels_key}: the label {labels.min()} is out of range; allowed: 0 and above")
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    # `torch.tensor` copies: a file's array may be read-only, and writing through a tensor must not be.
    return Images(torch.tensor(planes), torch.tensor(wide))


def no_images(like: Images) -> Images:
    """Return zero images of the shape of ``like``, for a split that a source does not have."""
    return like.take(torch.zeros(0, dtype=torch.int64))


def checked_data(
    *,
    name: str,
    where: str,
    train: Images,
    val: Images | None,
    test: Images,
    classes: tuple[str, ...] | None,
    published: bool,
    notes: tuple[str, ...] = (),
) -> ImageData:
    """Put splits together, checking what can only be checked across them.

    Args:
        name: as in the configuration.
        where: the file, for messages.
        train: may not be empty.
        val: None for a source without one.
        test: may not be empty.
        classes: one name per label; None to number the classes that train has.
        published: see `ImageData`.
        notes: see `ImageData`.

    Raises:
        FedveilError: an empty split, splits of differing shapes, a label out of range, a class without a
            training image, or fewer than two classes.
    """
    parts = [("train", train), ("val", no_images(train) if val is None else val), ("test", test)]
    for split, images in parts:
        if split != "val" and not len(images):
            raise FedveilError(f"{where}: {split} is empty; allowed: at least one image")
        if images.shape != train.shape:
            raise FedveilError(
                f"{where}: (C, H, W) of {split} is {images.shape}, of train {train.shape}; they must agree"
            )
    count = int(train.labels.max()) + 1 if classes is None else len(classes)
    for split, images in parts:
        if len(images) and int(images.labels.max()) >= count:
            worst = int(images.labels.max())
            hint = (
                "; labels seem to count from 1: subtract 1" if worst == count and int(images.labels.min()) == 1 else ""
            )
            raise FedveilError(
                f"{where}: {split}_labels: the label {worst} is out of range; allowed: 0 to {count - 1}{hint}"
            )
    seen = set(train.labels.tolist())
    if len(seen) < count:
        first = next(label for label in range(count) if label not in seen)
        title = "" if classes is None else f" ({classes[first]})"
        hint = "; labels seem to count from 1: subtract 1" if min(seen) == 1 else ""
        raise FedveilError(
            f"{where}: class {first}{title} has no training image{hint}; allowed: at least one per class"
        )
    if count < 2:
        raise FedveilError(f"{where}: there is one class only; allowed: at least two")
    return ImageData(
        name=name,
        train=train,
        val=parts[1][1],
        test=test,
        classes=tuple(map(str, range(count))) if classes is None else classes,
        published=published,
        notes=notes,
    )
