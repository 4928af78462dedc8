from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedveil.defense import Outpost, TrainedOn
from fedveil.defense.base import Stateless
from fedveil.defense.outpost import pruned
from fedveil.fl.messages import ClientUpdate


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def update(given: list[list[float]]) -> ClientUpdate:
    return ClientUpdate.gradient({f"layer{at}": torch.tensor(values) for at, values in enumerate(given)})


def outposted(given: list[list[float]], seed: int = 0, **options: float) -> list[Tensor]:
    return list(Outpost(**options).update(update(given), stream(seed)).tensors.values())


def test_small_values_go_and_large_ones_get_noise_by_hand() -> None:
    given = [[1.0, 2.0, 3.0, 4.0], [10.0, 0.0, 0.0, 0.0]]
    # A quarter of each tensor is pruned, and 3 of 8 values are the largest: 10, 4 and 3.
    first, second = outposted(given, share=3 / 8, prune=0.25)
    assert first[:2].tolist() == [0, 2]
    assert second[1:].tolist() == [0, 0, 0]
    assert bool((first[2:] != torch.tensor([3.0, 4.0])).all())
    assert float(second[0]) != 10
    silent = outposted(given, strength=0, share=1, prune=0.25)
    assert [one.tolist() for one in silent] == [[0, 2, 3, 4], [10, 0, 0, 0]]


def test_noise_is_in_units_of_each_layers_root_mean_square() -> None:
    # Of (3, 4) that is sqrt(12.5), of (0.3, 0.4) a tenth of it.
    draws = [outposted([[3.0, 4.0], [0.3, 0.4]], seed, strength=2, share=1, prune=0) for seed in range(3000)]
    for at, own in enumerate((torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4]))):
        noise = torch.stack([one[at] - own for one in draws])
        expected = 2 * float(own.square().mean().sqrt())
        assert noise.std(0).tolist() == pytest.approx([expected] * 2, rel=0.06)
        assert noise.mean(0).tolist() == pytest.approx([0, 0], abs=0.08 * expected)


@given(st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=20), st.floats(0, 0.99))
def test_the_smallest_share_of_a_tensor_is_pruned(given: list[float], share: float) -> None:
    w = torch.tensor(given)
    found = pruned(w, share)
    count = math.floor(share * len(given) + 1e-9)
    kept = found == w
    assert int((~kept).sum()) <= count
    assert bool((found[~kept] == 0).all())
    rest = sorted(w.abs().tolist())[count:]
    assert sorted(found.abs().tolist())[count:] == rest


def test_an_attacker_can_do_the_same() -> None:
    assert Outpost().trained_on is TrainedOn.NOTHING
    surrogate = Stateless(Outpost()).surrogate()
    assert surrogate.complete
    assert surrogate.update is not None
    given = update([[1.0, -2.0, 0.5], [0.25, 4.0]])
    one, other = (step(given, stream(3)).tensors for step in (surrogate.update, Outpost().update))
    assert all(torch.equal(one[name], other[name]) for name in one)
