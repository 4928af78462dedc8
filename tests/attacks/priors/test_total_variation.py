from __future__ import annotations

import pytest
import torch

from fedveil.attacks.priors import TotalVariation
from fedveil.fl.errors import FedveilError


def test_by_hand() -> None:
    image = torch.tensor([[0.0, 1.0, 3.0], [2.0, 2.0, 2.0]])
    # |dx| = 1, 2, 0, 0 and |dy| = 2, 1, 1.
    found = TotalVariation(2.0)(image.expand(5, 2, 3, 2, 3))
    torch.testing.assert_close(found, torch.full((5,), 2 * (3 / 4 + 4 / 3)))
    assert TotalVariation(1.0)(torch.full((1, 1, 1, 4, 4), 0.3)).tolist() == [0.0]


def test_each_victim_has_its_own() -> None:
    x = torch.stack([torch.zeros(1, 1, 4, 4), torch.eye(4).view(1, 1, 4, 4)])
    flat, rough = TotalVariation(1.0)(x).tolist()
    assert flat == 0
    assert rough > 0
    assert TotalVariation(1.0).take(torch.tensor([1]))(x[1:]).tolist() == [rough]


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(FedveilError, match="total_variation: weight"):
        TotalVariation(-1.0)
