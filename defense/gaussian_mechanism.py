"""The analytic Gaussian mechanism (Balle and Wang 2018, arXiv 1805.06530): no more noise than (epsilon, delta) asks for."""

from __future__ import annotations

import math

from torch import Tensor, tensor
from torch.special import log_ndtr


def gaussian_delta(sigma: float, *, epsilon: float, sensitivity: float) -> float:
    """Return the least delta with which Gaussian noise is (epsilon, delta)-differentially private (theorem 8).

    >>> from fedveil.defense.gaussian_mechanism import gaussian_delta
    >>> round(gaussian_delta(1.0, epsilon=1.0, sensitivity=1.0), 4)
    0.1269

    Args:
        sigma: standard deviation of each coordinate, above 0.
        epsilon: at least 0.
        sensitivity: L2, how far what is released may move between neighbours; above 0.
    """
    half, shift = sensitivity / (2 * sigma), epsilon * sigma / sensitivity
    first, second = _log_ndtr(half - shift), epsilon + _log_ndtr(-half - shift)
    # By logarithms: both terms may be far smaller than what a float tells from 0.
    return math.exp(first) * -math.expm1(min(0.0, second - first))


def gaussian_sigma(*, epsilon: float, delta: float, sensitivity: float) -> float:
    """Return the standard deviation for (epsilon, delta), to 1e-9 relative and not below it.

    >>> from fedveil.defense.gaussian_mechanism import gaussian_sigma
    >>> round(gaussian_sigma(epsilon=1.0, delta=1e-5, sensitivity=1.0), 4)
    3.7306

    Args:
        epsilon: above 0.
        delta: between 0 and 1.
        sensitivity: L2, above 0; the result is proportional to it.
    """
    low = high = 1.0
    while gaussian_delta(high, epsilon=epsilon, sensitivity=1.0) > delta:
        high *= 2
    while gaussian_delta(low, epsilon=epsilon, sensitivity=1.0) <= delta:
        low /= 2
    while high / low > 1 + 1e-9:
        middle = math.sqrt(low * high)
        if gaussian_delta(middle, epsilon=epsilon, sensitivity=1.0) > delta:
            low = middle
        else:
            high = middle
    return high * sensitivity


def _log_ndtr(x: float) -> float:
    found: Tensor = log_ndtr(tensor(x).double())
    return float(found)
