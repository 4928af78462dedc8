from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedveil.defense import OrthogonalPerturbation, TrainedOn
from fedveil.defense.base import Stateless
from fedveil.fl.messages import ClientUpdate

layers = st.lists(
    st.lists(st.floats(-1e3, 1e3, width=32).filter(lambda v: abs(v) > 1e-3), min_size=2, max_size=8),
    min_size=1,
    max_size=4,
)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def update(given: list[list[float]]) -> ClientUpdate:
    return ClientUpdate.gradient({f"layer{at}": torch.tensor(values) for at, values in enumerate(given)})


def test_in_the_plane_there_are_two_choices_by_hand() -> None:
    # Orthogonal to (3, 4) and as long are (-4, 3) and (4, -3).
    seen = {
        tuple(
            round(value, 4)
            for value in OrthogonalPerturbation().perturbed(torch.tensor([3.0, 4.0]), stream(s)).tolist()
        )
        for s in range(20)
    }
    assert seen == {(-1.0, 7.0), (7.0, 1.0)}
    assert OrthogonalPerturbation().perturbed(torch.tensor([3.0]), stream()).tolist() == [3]
    assert OrthogonalPerturbation().perturbed(torch.zeros(2), stream()).tolist() == [0, 0]


@given(layers, st.floats(0, 10), st.integers(0, 99))
def test_each_layer_is_turned_by_the_same_angle_in_truth(given: list[list[float]], strength: float, seed: int) -> None:
    before = update(given)
    after = OrthogonalPerturbation(strength=strength).update(before, stream(seed))
    for name, own in before.tensors.items():
        own, sent = own.double(), after.tensors[name].double()
        added, length = sent - own, float(own.norm())
        assert abs(float((added * own).sum())) <= 1e-5 * length**2 * (1 + strength)
        assert float(added.norm()) == pytest.approx(strength * length, rel=1e-4, abs=1e-5 * length)
        cosine = float((sent * own).sum() / (sent.norm() * own.norm()))
        assert cosine == pytest.approx(1 / math.sqrt(1 + strength**2), abs=1e-5)


def test_every_orthogonal_direction_is_as_likely() -> None:
    own = torch.tensor([0.0, 0.0, 2.0])
    added = torch.stack([OrthogonalPerturbation().perturbed(own, stream(seed)) - own for seed in range(2000)])
    assert float(added[:, 2].abs().max()) < 1e-5
    torch.testing.assert_close(added[:, :2].T.cov(), 2 * torch.eye(2), atol=0.15, rtol=0)


def test_an_attacker_can_do_the_same() -> None:
    assert OrthogonalPerturbation().trained_on is TrainedOn.NOTHING
    surrogate = Stateless(OrthogonalPerturbation()).surrogate()
    assert surrogate.complete
    assert surrogate.update is not None
    given = update([[1.0, -2.0, 0.5], [0.25, 4.0]])
    one, other = (step(given, stream(3)).tensors for step in (surrogate.update, OrthogonalPerturbation().update))
    assert all(torch.equal(one[name], other[name]) for name in one)
