"""Pictures in the form in which MLflow's image grid finds them."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedveil.fl.data.files import open_picture

_PREVIEW = 256
"""Longest side of the preview that the user interface loads first, as in ``MlflowClient.log_image``."""


def as_picture(image: Path | NDArray[np.generic]) -> Image.Image:
    """Return a picture from a file or from an array (H, W) or (H, W, 3), uint8 or floats in [0, 1].

    Raises:
        ValueError: the array has another shape, type or range.
        FedveilError: the file cannot be read.
    """
    if isinstance(image, Path):
        with open_picture(image) as opened:
            return opened.convert("RGB")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise ValueError(f"expected an image (H, W) or (H, W, 3), got {image.shape}")
    if image.dtype == np.uint8:
        return Image.fromarray(np.asarray(image, dtype=np.uint8))
    if not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"expected uint8 or floats, got {image.dtype}")
    floats = np.asarray(image, dtype=np.float64)
    if not (floats.min() >= 0.0 and floats.max() <= 1.0):
        raise ValueError(f"expected values in [0, 1], got {floats.min():.3g} to {floats.max():.3g}")
    return Image.fromarray(np.round(floats * 255.0).astype(np.uint8))


def save_as_mlflow_image(picture: Image.Image, key: str, step: int, folder: Path) -> tuple[Path, Path]:
    """Save the picture and its preview in ``folder``, named so that MLflow's user interface finds them.

    ``MlflowClient.log_image`` puts the time and a random number into these names, so a picture sent twice
    would be there twice; here a name depends on ``key`` and ``step`` alone: the second replaces the first.
    """
    identity = uuid.uuid5(uuid.NAMESPACE_OID, f"{key}@{step}")
    stem = f"{key.replace('/', '~')}+step+{step}+timestamp+{step}+{identity}"
    full, preview = folder / f"{stem}.png", folder / f"{stem}+compressed.webp"
    picture.save(full)
    scale = _PREVIEW / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture.resize(size).save(preview)
    return full, preview
