"""How both sides are scored: PSNR against the originals after one-to-one matching. NumPy and SciPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

CEILING = 100.0
"""Decibels that a perfect copy counts for."""


def psnrs(originals: NDArray[np.float32], found: NDArray[np.float32]) -> list[float]:
    """Return the PSNR of each original in dB, with peak 1 and at most `CEILING`.

    Args:
        originals: (B, C, H, W) in [0, 1].
        found: (B, C, H, W); what lies outside [0, 1] is clipped, what is no number counts as grey.
    """
    x = originals.reshape(len(originals), -1).astype(np.float64)
    y = np.nan_to_num(found.reshape(len(found), -1).astype(np.float64), nan=0.5, posinf=1.0, neginf=0.0).clip(0, 1)
    errors = np.square(x[:, None] - y[None]).mean(axis=2)
    rows, columns = linear_sum_assignment(errors)
    matched = np.maximum(errors[rows, columns], 10 ** (-CEILING / 10))
    return [float(value) for value in -10 * np.log10(matched)]
