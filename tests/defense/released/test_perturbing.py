from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from fedveil.defense import OutputNoise, OutputRounding
from fedveil.defense.guard import Guard
from fedveil.defense.released.lfp import LabelFlipped
from fedveil.defense.released.lpa import LabelPreserved
from fedveil.defense.released.perturbing import as_logits, candidate, moved
from fedveil.defense.released.poisoning import Direction
from fedveil.fl.errors import SettingError
from fedveil.fl.seeding import seeded_globals

BUDGETS = st.sampled_from([0.001, 0.05, 0.5, 2.0])
LOGITS = st.integers(2, 12).flatmap(
    lambda k: arrays.arrays(
        "float32",
        (3, k),
        elements=st.floats(-1e4, 1e4, width=32) | st.sampled_from([0.0, 1e-20, 1.0, 1e30, -1e30]),
    )
)


def lpa(classes: int, budget: float) -> Guard:
    """With random weights: the laws hold whatever was learnt."""
    with seeded_globals(classes):
        network = Direction(classes, classes)
        for parameter in network.parameters():
            parameter.data *= 5
    return LabelPreserved(network, budget, {})


def distance(one: Tensor, other: Tensor) -> Tensor:
    return (one.double().softmax(1) - other.double().softmax(1)).abs().sum(1)


@given(LOGITS, BUDGETS)
def test_no_label_changes_and_no_answer_moves_farther_than_the_budget(logits: Any, budget: float) -> None:
    given_ = torch.from_numpy(logits)
    for output in (lpa(logits.shape[1], budget), OutputNoise(strength=budget).output):
        found = output(given_)
        assert found.dtype == given_.dtype
        assert bool(found.isfinite().all())
        assert torch.equal(found.argmax(1), given_.argmax(1))
        assert bool((distance(found, given_) <= budget + 1e-5).all())


@given(LOGITS, st.integers(1, 6))
def test_rounding_changes_no_label(logits: Any, decimals: int) -> None:
    given_ = torch.from_numpy(logits)
    found = OutputRounding(decimals=decimals).output(given_)
    assert torch.equal(found.argmax(1), given_.argmax(1))


@given(LOGITS, BUDGETS)
def test_asking_again_tells_nothing_more(logits: Any, budget: float) -> None:
    given_ = torch.from_numpy(logits)
    for output in (lpa(logits.shape[1], budget), OutputNoise(strength=budget).output):
        assert torch.equal(output(given_), output(given_))


def test_a_move_by_hand() -> None:
    start, end = torch.tensor([[0.8, 0.2, 0.0]]), torch.tensor([[0.4, 0.2, 0.4]])
    # 0.8 apart: a quarter of the way is 0.2
    assert moved(start, end, 0.2)[0].tolist() == pytest.approx([0.7, 0.2, 0.1])
    assert moved(start, end, 5.0)[0].tolist() == pytest.approx([0.4, 0.2, 0.4])


def test_a_candidate_leads_where_it_has_to() -> None:
    found = candidate(torch.tensor([[0.0, 3.0, 1.0]]), torch.tensor([2]))
    # the third gets the second's score, and a twentieth of the whole
    assert found.argmax(1).tolist() == [2]
    assert float(found[0, 2] - found[0, 1]) == pytest.approx(0.05)
    assert float(found.sum()) == pytest.approx(1)
    assert candidate(torch.tensor([[0.0, 3.0, 1.0]]), None).argmax(1).tolist() == [1]


def test_confidences_of_nothing_have_finite_logits() -> None:
    found = as_logits(torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.zeros(1, dtype=torch.float32))
    assert found[0].tolist() == pytest.approx([0.0, -87.34], abs=0.01)
    assert found.softmax(1)[0].tolist() == pytest.approx([1.0, 0.0])


def test_the_random_control_uses_its_budget_up() -> None:
    logits = 6 * torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    moves = distance(OutputNoise(strength=0.2).output(logits), logits)
    assert float(moves.median()) == pytest.approx(0.2, abs=1e-4)
    assert float((moves > 0.199).double().mean()) > 0.9
    assert not torch.equal(OutputNoise(seed=1).output(logits), OutputNoise(seed=0).output(logits))


def test_rounding_by_hand() -> None:
    logits = torch.tensor([[0.64, 0.32, 0.04]]).log()
    found = OutputRounding(decimals=1).output(logits).softmax(1)[0]
    # 0.6 and 0.01 more, 0.3 and 0, of 0.91
    assert found.tolist() == pytest.approx([0.61 / 0.91, 0.3 / 0.91, 0.0])


def test_only_weighty_answers_are_flipped() -> None:
    weight, network = Direction(2, 1), Direction(2, 2)
    for module in (weight, network):
        for parameter in module.parameters():
            parameter.data.zero_()
    # The weight is minus the second entry's logarithm, as far as tanh lets it; the candidate is all for the second.
    weight.layers[0].weight.data[0] = torch.tensor([0.0, 1.0])
    weight.layers[2].weight.data[0, 0] = 1.0
    weight.layers[4].weight.data[0, 0] = 1.0
    network.layers[4].bias.data = torch.tensor([-5.0, 5.0])
    guard = LabelFlipped(weight, network, least=-0.2, budget=2.0, told={"flipped": 0.5})
    # log p / 5 is -0.14 for the first and -0.46 for the second.
    logits = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    found = guard(logits)
    assert torch.equal(found[1], logits[1])
    assert float(found[0].softmax(0)[1]) > 0.99
    assert guard.diagnostics() == {"flipped": 0.5}


@pytest.mark.parametrize("strength", [0, 0.0001, 2.1, float("nan")])
def test_a_budget_that_moves_nothing_or_is_no_distance_is_refused(strength: float) -> None:
    with pytest.raises(SettingError, match="an L1 distance on the simplex"):
        OutputNoise(strength=strength)
