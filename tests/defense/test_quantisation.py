from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from fedveil.defense import Quantisation, Sign, TrainedOn
from fedveil.defense.base import Stateless
from fedveil.fl.messages import ClientUpdate

values = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=12)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quantised(given: list[float] | Tensor, seed: int = 0, **options: object) -> Tensor:
    update = ClientUpdate.gradient({"w": torch.as_tensor(given)})
    return Quantisation(**options).update(update, stream(seed)).tensors["w"]  # type: ignore[arg-type]


def test_levels_by_hand() -> None:
    # Three bits are a sign and 3 levels: of (3, -1, 0), scale 3, each value is on one, and nothing is left to chance.
    assert quantised([3.0, -1.0, 0.0], bits=3).tolist() == [3, -1, 0]
    # Two bits are a sign and the scale: 1 of 3 is sent as 0 twice in three times, as 3 once.
    found = torch.stack([quantised([3.0, -1.0], seed, bits=2) for seed in range(3000)])
    assert set(found[:, 1].tolist()) == {-3.0, -0.0}
    assert float((found[:, 1] == -3).float().mean()) == pytest.approx(1 / 3, abs=0.03)
    # By the length 5 of (3, 4), with 1 level: 3/5 and 4/5.
    lengths = torch.stack([quantised([3.0, 4.0], seed, bits=2, scale="l2") for seed in range(3000)])
    assert set(lengths.flatten().tolist()) == {0.0, 5.0}
    assert (lengths == 5).float().mean(0).tolist() == pytest.approx([0.6, 0.8], abs=0.03)


@given(values, st.integers(2, 8), st.sampled_from(["max", "l2"]), st.integers(0, 99))
@example([0.0, 1.8e-30], 2, "l2", 0)
@example([3e30, 4e30], 3, "l2", 0)
def test_each_value_is_one_of_its_two_neighbouring_levels(given: list[float], bits: int, scale: str, seed: int) -> None:
    w = torch.tensor(given)
    found = quantised(w, seed, bits=bits, scale=scale)
    size = float(w.abs().max() if scale == "max" else w.double().norm())
    step = size / (2 ** (bits - 1) - 1)
    assert float((found - w).abs().max()) <= step * (1 + 1e-5) + 1e-30
    assert bool((found * w >= 0).all())
    assert len(found.abs().unique()) <= 2 ** (bits - 1)
    if step > 1e-20:
        places = found.double() / step
        assert float((places - places.round()).abs().max()) < 1e-3


def test_the_mean_stays_and_its_deviation_is_that_of_two_levels() -> None:
    w = torch.linspace(-1, 1, 7).repeat(20_000, 1)
    found = quantised(w, bits=3)
    torch.testing.assert_close(found.mean(0), w[0], atol=0.006, rtol=0)
    # Between levels a third apart a fraction f is rounded up with probability f: variance f (1 - f) / 9.
    part = (3 * w[0].abs()) % 1
    torch.testing.assert_close(found.var(0), part * (1 - part) / 9, atol=2e-3, rtol=0)


def signs(given: list[float], **options: object) -> list[float]:
    found = Sign(**options).update(ClientUpdate.gradient({"w": torch.tensor(given)}), stream())  # type: ignore[arg-type]
    return found.tensors["w"].tolist()


def test_signs_by_hand() -> None:
    # The mean magnitude of (4, -1, 0, 1) is 1.5.
    assert signs([4.0, -1.0, 0.0, 1.0]) == [1.5, -1.5, 0, 1.5]
    assert signs([4.0, -1.0, 0.0, 1.0], scale="fixed", size=0.25) == [0.25, -0.25, 0, 0.25]


@given(values.filter(lambda v: all(abs(one) > 1e-3 for one in v)), st.floats(0.01, 3))
def test_no_other_size_is_closer_to_the_update(given: list[float], other: float) -> None:
    w, found = torch.tensor(given).double(), torch.tensor(signs(given)).double()
    assert bool((found.sign() == w.sign()).all())
    assert float((found - w).norm()) <= float((other * found - w).norm()) * (1 + 1e-4)
    assert signs(found.float().tolist()) == pytest.approx(found.tolist(), rel=1e-4), "twice is once"


@pytest.mark.parametrize("settings", [Quantisation(), Sign()], ids=repr)
def test_zeros_and_empty_tensors_and_buffers_stay(settings: Quantisation | Sign) -> None:
    update = ClientUpdate.delta(
        {"w": torch.zeros(3), "none": torch.zeros(0)}, learning_rate=0.1, buffers={"mean": torch.tensor([0.3])}
    )
    found = settings.update(update, stream())
    assert found.tensors["w"].tolist() == [0, 0, 0]
    assert found.tensors["none"].numel() == 0
    assert found.buffers["mean"].item() == pytest.approx(0.3)
    assert settings.trained_on is TrainedOn.NOTHING
    surrogate = Stateless(settings).surrogate()
    assert surrogate.complete
    assert surrogate.update is not None
    again = ClientUpdate.gradient({"w": torch.tensor([1.0, -2.0])})
    assert torch.equal(surrogate.update(again, stream()).tensors["w"], settings.update(again, stream()).tensors["w"])
    assert math.isfinite(float(settings.update(again, stream()).tensors["w"].norm()))
