"""Users' arrays and pictures as bytes: what other files hold (floats, 16 bits, channels first) is converted, and said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from fedveil.fl.data.checks import Array
from fedveil.fl.errors import FedveilError

_AT_ONCE = 2**24
"""Numbers that are converted together, so that their copies as floats stay small."""
_CHANNELS = (1, 3)


@dataclass(frozen=True)
class ValueRange:
    """Which values become black and white; those between become shades of grey in proportion.

    One range for all images of a data set, of whatever split: a range for each would change what they show.

    Attributes:
        low: becomes 0.
        high: becomes 255.
    """

    low: float
    high: float

    def bytes_of(self, pixels: Array) -> Array:
        """Return uint8 of the same shape."""
        # Equal ends leave nothing to see: black.
        width = self.high - self.low or 1.0
        found = np.empty(pixels.shape, np.uint8)
        for rows in _chunks(pixels):
            shares = (pixels[rows].astype(np.float64) - self.low) / width
            found[rows] = np.rint(255 * shares.clip(0, 1))
        return found


WHOLE_BYTE = ValueRange(0.0, 255.0)
UNIT = ValueRange(0.0, 1.0)


def value_range(parts: Mapping[str, Array], where: str) -> ValueRange:
    """Return the range of some images' values.

    Floats in [0, 1] and truth values are taken for shares of white, whole numbers from 0 to 255 for bytes. Of all others,
    16-bit pixels and Hounsfield units for example, the least becomes black and the largest white: what a window of a
    viewer would show more of has to be cut out before.

    Args:
        parts: the splits by their names in messages, numbers of any real type.
        where: the file, for messages.

    Raises:
        FedveilError: they are no real numbers, some are NaN or infinite, or some splits are whole numbers and others not.
    """
    if len({pixels.dtype.kind in "bf" for pixels in parts.values()}) > 1:
        kinds = ", ".join(dict.fromkeys(str(pixels.dtype) for pixels in parts.values()))
        raise FedveilError(f"{where}: the splits are of {kinds}; whole numbers and fractions do not share a range")
    lows, highs, whole = [], [], True
    for name, pixels in parts.items():
        if pixels.dtype.kind not in "buif":
            raise FedveilError(f"{where}: {name}: the dtype is {pixels.dtype}; allowed: real numbers")
        for rows in _chunks(pixels):
            some = pixels[rows]
            if not np.isfinite(some).all():
                raise FedveilError(f"{where}: {name}: some pixels are NaN or infinite; allowed: finite numbers")
            lows.append(float(some.min()))
            highs.append(float(some.max()))
            whole = whole and (some.dtype.kind in "ui" or bool((some == np.rint(some)).all()))
    low, high = min(lows, default=0.0), max(highs, default=0.0)
    if next(iter(parts.values())).dtype.kind in "bf" and low >= 0 and high <= 1:
        return UNIT
    return WHOLE_BYTE if whole and low >= 0 and high <= 255 else ValueRange(low, high)


def _chunks(pixels: Array) -> Iterator[slice]:
    each = max(1, _AT_ONCE // max(1, pixels[:1].size))
    return (slice(start, start + each) for start in range(0, len(pixels) if pixels.size else 0, each))


def channels_last(pixels: Array) -> Array:
    """Return (n, H, W, C) where channels stand first, and anything else as it is: an image 1 or 3 px wide stays one."""
    first = pixels.ndim == 4 and pixels.shape[1] in _CHANNELS and pixels.shape[3] not in _CHANNELS
    return pixels.transpose(0, 2, 3, 1) if first else pixels


def as_pictures(parts: Mapping[str, Array], where: str) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Convert the images of all splits to bytes with channels last.

    Args:
        parts: the images of each split by its name in messages.
        where: the file, for messages and notes.

    Returns:
        They, and what was done to them, a sentence each; none where nothing was.

    Raises:
        FedveilError: see `value_range`; or some splits have channels first and others last.
    """
    notes = []
    turned = {name: channels_last(part) for name, part in parts.items()}
    moved = [turned[name] is not part for name, part in parts.items()]
    if any(moved):
        if not all(moved):
            raise FedveilError(f"{where}: channels stand first in some splits and last in others; they must agree")
        notes.append(f"{where}: channels stood first, (n, C, H, W), and were moved to the end")
    if any(part.dtype != np.uint8 for part in turned.values()):
        used = value_range(turned, where)
        kinds = ", ".join(dict.fromkeys(str(part.dtype) for part in parts.values()))
        notes.append(f"{where}: pixels were {kinds}; {used.low:g} became 0 and {used.high:g} became 255")
        turned = {name: used.bytes_of(part) for name, part in turned.items()}
    return turned, tuple(notes)
