from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedveil.defense.gaussian_mechanism import gaussian_delta, gaussian_sigma


def integrated(sigma: float, epsilon: float, sensitivity: float) -> float:
    """The definition: how much of N(s, sigma) lies above e^epsilon times N(0, sigma), summed over a fine grid."""
    x = torch.linspace(-12 * sigma, sensitivity + 12 * sigma, 400_001, dtype=torch.float64)
    one, other = (torch.exp(-((x - at) ** 2) / (2 * sigma**2)) for at in (sensitivity, 0.0))
    excess = (one - math.exp(epsilon) * other).clamp_min(0)
    return float(torch.trapezoid(excess, x)) / (sigma * math.sqrt(2 * math.pi))


@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("sensitivity", [0.5, 2.0])
def test_delta_is_that_of_the_definition(sigma: float, epsilon: float, sensitivity: float) -> None:
    expected = integrated(sigma, epsilon, sensitivity)
    found = gaussian_delta(sigma, epsilon=epsilon, sensitivity=sensitivity)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-12)


@settings(max_examples=60)
@given(st.floats(0.01, 50), st.floats(1e-12, 0.3), st.floats(1e-3, 1e3))
def test_noise_is_enough_and_hardly_more(epsilon: float, delta: float, sensitivity: float) -> None:
    sigma = gaussian_sigma(epsilon=epsilon, delta=delta, sensitivity=sensitivity)
    assert gaussian_delta(sigma, epsilon=epsilon, sensitivity=sensitivity) <= delta * (1 + 1e-6)
    assert gaussian_delta(0.999 * sigma, epsilon=epsilon, sensitivity=sensitivity) > delta
    assert sigma == pytest.approx(sensitivity * gaussian_sigma(epsilon=epsilon, delta=delta, sensitivity=1.0))
    assert sigma > gaussian_sigma(epsilon=2 * epsilon, delta=delta, sensitivity=sensitivity)


def test_it_takes_less_than_the_classical_bound() -> None:
    """Dwork and Roth 2014, theorem A.1, for epsilon below 1."""
    for epsilon in (0.1, 0.5, 0.99):
        classical = math.sqrt(2 * math.log(1.25 / 1e-5)) / epsilon
        assert gaussian_sigma(epsilon=epsilon, delta=1e-5, sensitivity=1.0) < classical
