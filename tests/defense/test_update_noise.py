from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedveil.defense import DefenseContext, UpdateNoise
from fedveil.fl.data.images import Images
from fedveil.fl.messages import ClientUpdate, UpdateKind

numbers = st.floats(-1e6, 1e6, width=32)
layers = st.lists(st.lists(numbers, min_size=1, max_size=5), min_size=1, max_size=4)


def sent(values: list[list[float]], buffer: float = 7.0) -> ClientUpdate:
    return ClientUpdate(
        tensors={f"layer{i}": torch.tensor(v) for i, v in enumerate(values)},
        buffers={"mean": torch.tensor([buffer])},
        examples=5,
        kind=UpdateKind.DELTA,
        local_steps=3,
        learning_rate=0.1,
    )


def flat(update: ClientUpdate) -> torch.Tensor:
    return torch.cat([t.flatten() for t in update.tensors.values()])


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_clipping_worked_by_hand_is_over_all_layers_together() -> None:
    # The norm of (3, 4, 12) is 13.
    found = UpdateNoise(strength=0, clip=6.5).update(sent([[3, 4], [12]]), stream())
    torch.testing.assert_close(flat(found), torch.tensor([1.5, 2, 6]))
    untouched = UpdateNoise(strength=0, clip=13).update(sent([[3, 4], [12]]), stream())
    assert flat(untouched).tolist() == [3, 4, 12]


@given(layers, st.floats(1e-3, 1e3))
def test_without_noise_the_norm_is_at_most_the_clip(values: list[list[float]], clip: float) -> None:
    before = flat(sent(values)).double()
    after = flat(UpdateNoise(strength=0, clip=clip).update(sent(values), stream())).double()
    assert after.norm() <= clip * (1 + 1e-6)
    if before.norm() <= clip:
        assert torch.equal(after, before)
    else:
        assert after.norm() >= clip * (1 - 1e-5)
        assert torch.dot(after, before) >= after.norm() * before.norm() * (1 - 1e-5), "the direction stays"


def test_an_update_of_zeros_stays_finite() -> None:
    assert flat(UpdateNoise(strength=0).update(sent([[0.0, 0.0]]), stream())).tolist() == [0, 0]


@pytest.mark.parametrize(("strength", "clip"), [(0.5, 1.0), (0.5, 4.0), (2.0, 1.0)])
def test_the_noise_has_the_set_standard_deviation(strength: float, clip: float) -> None:
    update = sent([[0.0] * 20000, [0.0] * 20000])
    noise = flat(UpdateNoise(strength=strength, clip=clip).update(update, stream()))
    std = strength * clip
    # 40000 draws: standard errors of 0.35 % of the deviation, and 0.5 % for the mean.
    assert noise.std().item() == pytest.approx(std, rel=0.015)
    assert noise.mean().item() == pytest.approx(0, abs=0.02 * std)
    halves = noise.view(2, -1)
    correlation = (halves[0] * halves[1]).mean().item() / std**2
    assert correlation == pytest.approx(0, abs=0.03), "each layer has noise of its own"


def test_noise_is_added_after_clipping() -> None:
    update = sent([[100.0] * 10000])
    found = flat(UpdateNoise(strength=0.1, clip=1).update(update, stream()))
    # 100 in each of 10000 entries has the norm 10000, so each entry is clipped to 0.01.
    assert found.mean().item() == pytest.approx(0.01, abs=0.004)
    assert found.std().item() == pytest.approx(0.1, rel=0.03)


def test_noise_follows_the_stream_and_is_fresh_at_each_call() -> None:
    defence, own = UpdateNoise(strength=1.0), stream(3)
    first, second = (flat(defence.update(sent([[1.0, 2.0]]), own)) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(flat(defence.update(sent([[1.0, 2.0]]), stream(3))), first)


def test_everything_but_the_tensors_stays_and_so_does_the_update_given() -> None:
    update = sent([[3.0, 4.0]])
    found = UpdateNoise(strength=1.0).update(update, stream())
    assert found.buffers["mean"].tolist() == [7]
    assert (found.examples, found.kind, found.local_steps, found.learning_rate) == (5, UpdateKind.DELTA, 3, 0.1)
    assert flat(update).tolist() == [3, 4]


def test_an_update_that_is_not_finite_does_not_pass_as_a_clipped_one() -> None:
    found = flat(UpdateNoise(strength=0).update(sent([[math.nan, 1.0]]), stream()))
    assert not found.isfinite().all()


def test_the_attacker_gets_the_mechanism(context: DefenseContext, private: Images) -> None:
    defence = UpdateNoise(strength=0.5)
    surrogate = defence.prepare(private, context, None, client=0).surrogate()
    assert surrogate.data is None
    assert surrogate.visible is None
    assert surrogate.update is not None
    update = sent([[3.0, 4.0]])
    assert torch.equal(flat(surrogate.update(update, stream(4))), flat(defence.update(update, stream(4))))
