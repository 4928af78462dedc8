"""Pictures of any shape as squares of one size."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageOps

from fedveil.fl.data.checks import Array
from fedveil.fl.errors import SettingError

Fit = Literal["pad", "resize", "crop"]
"""``pad``: the whole picture, in proportion, on black; ``resize``: the whole picture, drawn out to a square; ``crop``: the
centred square of it, without the rest."""

DEFAULT: Fit = "pad"
"""The whole picture as it looks: what lies at the border of a scan is part of it."""

_DONE = {
    "pad": "were padded with black to squares",
    "resize": "were drawn out to squares",
    "crop": "lost what is outside of their centred square",
}
_METHOD = Image.Resampling.BILINEAR


def check_fit(fit: str, what: str) -> None:
    """Refuse what is no `Fit`.

    Raises:
        SettingError: it is none; ``what`` says whose setting it is.
    """
    if fit not in get_args(Fit):
        raise SettingError(what, "fit", fit, f"allowed: {', '.join(get_args(Fit))}")


def fitted(picture: Image.Image, size: int, fit: Fit) -> Image.Image:
    """Return a picture of ``size`` x ``size`` px, of the same mode (``L`` or ``RGB``)."""
    if fit == "pad":
        return ImageOps.pad(picture, (size, size), _METHOD)
    if fit == "crop":
        return ImageOps.fit(picture, (size, size), _METHOD)
    return picture.resize((size, size), _METHOD)


def fitted_arrays(pixels: Array, size: int, fit: Fit) -> Array:
    """Return (n, size, size, C) of (n, H, W) or (n, H, W, C) bytes, C 1 or 3."""
    grey = pixels.ndim == 3 or pixels.shape[3] == 1
    flat = pixels.reshape(pixels.shape[:3]) if grey else pixels
    found = np.empty((len(flat), size, size, 1 if grey else 3), np.uint8)
    for row, picture in enumerate(flat):
        found[row] = np.asarray(fitted(Image.fromarray(picture), size, fit)).reshape(found.shape[1:])
    return found


def fit_note(where: str, odd: int, count: int, fit: Fit) -> str:
    """Return the sentence that says what became of pictures that were no squares."""
    others = ", ".join(other for other in get_args(Fit) if other != fit)
    return f"{where}: {odd} of {count} pictures are no squares and {_DONE[fit]} (data.fit: {fit}; else {others})"
