from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fedveil.defense import DefenseContext, DualGradientPruning, Stack, TopK, TrainedOn
from fedveil.defense.dgp import between, survivors
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.hooks import Memory, Turn
from fedveil.fl.messages import ClientUpdate, UpdateKind
from fedveil.fl.models import build_model, init_model

shares = st.tuples(st.floats(0, 0.9), st.floats(0, 0.9)).filter(lambda both: sum(both) < 0.99)
whole_numbers = st.lists(st.integers(-1000, 1000), min_size=1, max_size=60)


def stream() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def gradient(*values: float) -> ClientUpdate:
    return ClientUpdate.gradient({"w": torch.tensor(values)})


def test_pruning_worked_by_hand_drops_both_ends() -> None:
    defence = DualGradientPruning(largest=0.2, smallest=0.4)
    sent = defence.update(gradient(0.1, -5.0, 3.0, -2.0, 0.5), stream())
    # Ranked by size: 5, 3, 2, .5, .1; a fifth is dropped from the top, two fifths from the bottom.
    assert sent.tensors["w"].tolist() == [0, 0, 3, -2, 0]


@pytest.mark.parametrize(
    ("count", "first", "end"),
    # A scalar is sent as it is; of two the larger is dropped, whatever the shares ask for.
    [(1, 0, 1), (2, 1, 2), (3, 1, 2), (10, 1, 3), (20, 1, 5), (100, 5, 25), (1000, 50, 250), (4860, 243, 1215)],
)
def test_one_definition_for_small_and_large_tensors(count: int, first: int, end: int) -> None:
    assert survivors(count, largest=0.05, smallest=0.75) == (first, end)


@given(st.integers(1, 5000), shares)
def test_at_least_one_entry_is_sent_and_about_the_share_that_is_asked_for(count: int, cut: tuple[float, float]) -> None:
    largest, smallest = cut
    first, end = survivors(count, largest=largest, smallest=smallest)
    assert 0 <= first < end <= count
    assert count == 1 or largest < 1e-9 or first >= 1, "the largest is never sent"
    assert abs(first - largest * count) <= 1
    assert abs((count - end) - smallest * count) <= 1 or end == first + 1


@given(whole_numbers, shares)
def test_what_is_sent_lies_between_what_is_not(values: list[int], cut: tuple[float, float]) -> None:
    largest, smallest = cut
    tensor = torch.tensor(values, dtype=torch.float32)
    found = between(tensor, tensor, largest=largest, smallest=smallest)
    first, end = survivors(len(values), largest=largest, smallest=smallest)
    sizes = sorted((abs(value) for value in values), reverse=True)
    assert sorted((abs(v) for v in found.tolist() if v), reverse=True) == [v for v in sizes[first:end] if v]
    assert all(after in (0, before) for before, after in zip(values, found.tolist(), strict=True))


def test_the_authors_published_rule_for_layers_that_are_multiples_of_twenty() -> None:
    tensor = torch.randn(40, 25, generator=stream())
    size = tensor.abs().flatten()
    top = size.sort(descending=True).indices[: len(size) // 20]
    rest = tensor.flatten().clone()
    rest[top] = 0
    kept = rest.abs().sort(descending=True).indices[: (2 * len(size) // 5) // 2]
    slow = torch.zeros_like(rest)
    slow[kept] = rest[kept]
    assert torch.equal(between(tensor, tensor, largest=0.05, smallest=0.75).flatten(), slow)


@given(st.lists(st.lists(st.integers(-64, 64), min_size=6, max_size=6), min_size=1, max_size=8), st.booleans())
def test_with_full_feedback_nothing_is_lost_over_the_rounds(rounds: list[list[int]], deltas: bool) -> None:
    defence = DualGradientPruning(largest=0.2, smallest=0.5)
    memory: Memory = {}
    sent = torch.zeros(6)
    for values in rounds:
        update = gradient(*values)
        if deltas:  # of four steps with a rate of a quarter, so that no rounding comes in
            update = replace(update, kind=UpdateKind.DELTA, local_steps=4, learning_rate=0.25)
        left, memory = defence.carry(update, Turn(memory), stream())
        sent += left.tensors["w"]
    due = torch.tensor(rounds, dtype=torch.float32).sum(dim=0)
    scale = -1 if deltas else 1  # what is remembered has the size and sign of a gradient
    assert torch.equal(sent + scale * memory["w"], due)


def test_memory_worked_by_hand() -> None:
    defence = DualGradientPruning(largest=0.25, smallest=0.5, feedback=0.5)
    first, memory = defence.carry(gradient(4.0, 3.0, 2.0, 1.0), Turn(), stream())
    assert first.tensors["w"].tolist() == [0, 3, 0, 0]
    assert memory["w"].tolist() == [4, 0, 2, 1]
    # Half of that is added: (3, 1, 2, .5).
    second, memory = defence.carry(gradient(1.0, 1.0, 1.0, 0.0), Turn(memory), stream())
    assert second.tensors["w"].tolist() == [0, 0, 2, 0]
    assert memory["w"].tolist() == [3, 1, 0, 0.5]


def test_memory_fits_a_round_of_another_rate_and_a_single_gradient() -> None:
    defence = DualGradientPruning(largest=0.25, smallest=0.5)
    steps = ClientUpdate.delta({"w": torch.tensor([-4.0, -3.0, -2.0, -1.0])}, learning_rate=0.5, local_steps=2)
    _, memory = defence.carry(steps, Turn(), stream())
    assert memory["w"].tolist() == [4, 0, 2, 1], "two steps of half a gradient are one gradient, downhill"
    again, _ = defence.carry(gradient(0.0, 0.0, 0.0, 0.0), Turn(memory), stream())
    assert again.tensors["w"].tolist() == [0, 0, 2, 0]
    smaller = ClientUpdate.delta({"w": torch.zeros(4)}, learning_rate=0.25, local_steps=1)
    again, _ = defence.carry(smaller, Turn(memory), stream())
    assert again.tensors["w"].tolist() == [0, 0, -0.5, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_sent_for_the_server_to_refuse(value: float) -> None:
    broken = gradient(*[1.0] * 39, value)
    sent, _ = DualGradientPruning().carry(broken, Turn(), stream())
    assert not sent.tensors["w"].isfinite().all()


def test_without_feedback_nothing_is_kept() -> None:
    sent, memory = DualGradientPruning(feedback=0).carry(gradient(3.0, 2.0, 1.0), Turn(), stream())
    assert (sent.tensors["w"].count_nonzero(), memory) == (1, {})


def test_the_attacker_matches_what_was_sent_only(context: DefenseContext, private: Images) -> None:
    prepared = DualGradientPruning(largest=0.2, smallest=0.4).prepare(private, context, None, client=0)
    surrogate = prepared.surrogate()
    assert surrogate.complete
    assert surrogate.update is not None
    assert surrogate.visible is not None
    sent = surrogate.update(gradient(0.1, -5.0, 3.0, -2.0, 0.5), stream())
    assert surrogate.visible(sent.tensors)["w"].tolist() == [0, 0, 1, 1, 0]


def of_model(context: DefenseContext, seed: int) -> tuple[dict[str, Tensor], ClientUpdate]:
    weights = init_model(context.model, 3)
    noise = torch.Generator().manual_seed(seed)
    return weights, ClientUpdate.gradient({n: torch.randn(w.shape, generator=noise) for n, w in weights.items()})


def test_aligned_clients_send_the_same_entries_those_of_the_public_gradient(
    context: DefenseContext, private: Images
) -> None:
    defence = DualGradientPruning(aligned=True, public_images=40)
    assert defence.trained_on is TrainedOn.PUBLIC
    public = defence.pretrain(context)
    assert public is not None
    assert len(public) == 40
    one, other = (defence.prepare(private, context, public, client=client) for client in (0, 1))
    model = build_model(context.model).eval()
    model.load_state_dict(init_model(context.model, 3))
    x, y = public.floats(), public.labels
    gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    for prepared, seed in ((one, 1), (other, 2)):
        weights, update = of_model(context, seed)
        sent, memory = prepared.carry(update, Turn({}, weights), stream())
        for (name, tensor), by in zip(sent.tensors.items(), gradients, strict=True):
            first, end = survivors(tensor.numel(), largest=0.05, smallest=0.75)
            due = by.flatten().abs().argsort(descending=True, stable=True)[first:end]
            assert tensor.flatten().nonzero().flatten().tolist() == sorted(due.tolist())
            assert torch.equal(tensor + memory[name], update.tensors[name])


def test_in_a_stack_each_part_finds_its_own_memory(context: DefenseContext, private: Images) -> None:
    parts = (TopK(keep=1.0), DualGradientPruning(largest=0.25, smallest=0.5), DualGradientPruning(smallest=0.5))
    stack = Stack(parts=parts)
    prepared = stack.prepare(private, context, stack.pretrain(context), client=0)
    update = gradient(4.0, 3.0, 2.0, 1.0)
    sent, memory = prepared.carry(update, Turn(), stream())
    once, first = parts[1].carry(update, Turn(), stream())
    twice, second = parts[2].carry(once, Turn(), stream())
    assert {name: value.tolist() for name, value in memory.items()} == {
        "1/w": first["w"].tolist(),
        "2/w": second["w"].tolist(),
    }
    assert torch.equal(sent.tensors["w"], twice.tensors["w"])
    again, _ = prepared.carry(update, Turn(memory), stream())
    by_hand, _ = parts[2].carry(parts[1].carry(update, Turn(first), stream())[0], Turn(second), stream())
    assert torch.equal(again.tensors["w"], by_hand.tensors["w"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"largest": -0.1}, "largest"),
        ({"largest": 0.5, "smallest": 0.5}, "below 1 together"),
        ({"smallest": float("nan")}, "smallest"),
        ({"feedback": 1.5}, "at most 1"),
        ({"public_images": 0}, "public_images"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], said: str) -> None:
    with pytest.raises(FedveilError, match=said):
        DualGradientPruning(**settings)  # type: ignore[arg-type]
