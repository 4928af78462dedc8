import pytest
import torch

from fedveil.attacks.adaptive.whitening import Whitening
from fedveil.fl.seeding import torch_stream


@pytest.mark.parametrize("shrinkage", [0.1, 3.0])
def test_distances_are_those_of_the_inverse_covariance(shrinkage: float) -> None:
    stream = torch_stream(0, "whitening")
    residuals, observed, candidates = (torch.randn((n, 7), generator=stream).double() for n in (5, 3, 4))
    found = Whitening.of(residuals, shrinkage=shrinkage).distances(observed, candidates)
    covariance = residuals.T @ residuals / 5
    covariance += shrinkage * covariance.trace() / 7 * torch.eye(7, dtype=torch.float64)
    gaps = observed[:, None] - candidates
    slow = torch.einsum("vcd,de,vce->vc", gaps, covariance.inverse(), gaps)
    torch.testing.assert_close(found, slow, rtol=1e-9, atol=1e-9)


def test_a_round_metric_is_in_units_of_the_noise() -> None:
    residuals = torch.tensor([[2.0, -2.0], [-2.0, 2.0]])  # variance 4
    metric = Whitening.of(residuals, shrinkage=None)
    assert metric.distances(torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 4.0], [3.0, 0.0]])).tolist() == [[5.0, 0.0]]


@pytest.mark.parametrize("shrinkage", [0.1, None])
def test_without_noise_the_metric_is_the_plain_one(shrinkage: float | None) -> None:
    metric = Whitening.of(torch.zeros(3, 2), shrinkage=shrinkage)
    assert metric.distances(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])).tolist() == [[25.0]]
