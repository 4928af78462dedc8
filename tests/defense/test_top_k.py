from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedveil.defense import DefenseContext, TopK
from fedveil.defense.base import Stateless
from fedveil.defense.top_k import keep_largest
from fedveil.fl.data.images import Images
from fedveil.fl.messages import ClientUpdate, UpdateKind

vectors = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60)
shares = st.integers(1, 100)


def test_worked_by_hand() -> None:
    values = torch.tensor([[1.0, -5.0, 2.0], [0.5, 4.0, -3.0]])
    assert keep_largest(values, 0.5).tolist() == [[0, -5, 0], [0, 4, -3]]
    assert keep_largest(values, 0.51).tolist() == [[0, -5, 2], [0, 4, -3]], "rounded up"
    assert keep_largest(values, 1e-12).tolist() == [[0, -5, 0], [0, 0, 0]], "at least one"


def test_ties_go_to_the_lower_index() -> None:
    assert keep_largest(torch.tensor([1.0, -2.0, 2.0, -2.0, 1.0]), 0.4).tolist() == [0, -2, 2, 0, 0]
    assert keep_largest(torch.ones(1000), 0.25).nonzero().flatten().tolist() == list(range(250))


@pytest.mark.parametrize("percent", range(1, 101))
def test_a_share_in_whole_entries_is_met_exactly(percent: int) -> None:
    # 0.07 * 100, 0.14 * 100, 0.28 * 100 and others are a hair above a whole number in floating point.
    values = torch.arange(1.0, 101.0)
    assert keep_largest(values, percent / 100).count_nonzero() == percent


@given(vectors, shares)
def test_laws_of_the_kept_entries(values: list[float], percent: int) -> None:
    tensor, keep = torch.tensor(values), percent / 100
    found = keep_largest(tensor, keep)
    count = -(-Fraction(percent, 100) * len(values) // 1)
    assert found.count_nonzero() == min(count, int(tensor.count_nonzero()))
    kept = found != 0
    assert torch.equal(found[kept], tensor[kept])
    if kept.any() and not kept.all():
        assert found[kept].abs().min() >= tensor[~kept].abs().max()
    assert torch.equal(keep_largest(found, keep), found), "idempotent"
    assert torch.equal(keep_largest(tensor, 1.0), tensor)
    assert torch.equal(keep_largest(-tensor, keep), -found)


def update(tensors: dict[str, torch.Tensor]) -> ClientUpdate:
    return ClientUpdate(tensors, 5, UpdateKind.DELTA, 3, 0.1, buffers={"mean": torch.tensor([7.0, 1.0])})


def test_each_tensor_is_cut_by_itself_and_the_rest_stays() -> None:
    given_ = update({"small": torch.tensor([0.1, 0.2]), "large": torch.tensor([[10.0, 20.0]])})
    found = TopK(keep=0.5).update(given_, torch.Generator())
    assert {n: t.tolist() for n, t in found.tensors.items()} == {
        "small": [0, pytest.approx(0.2)],
        "large": [[0, 20]],
    }
    assert found.buffers["mean"].tolist() == [7, 1]
    assert (found.examples, found.kind, found.local_steps) == (5, UpdateKind.DELTA, 3)
    assert given_.tensors["large"].tolist() == [[10, 20]]


def test_fewer_entries_are_fewer_bytes() -> None:
    dense = update({"w": torch.arange(1.0, 101.0)})
    # 100 and 2 dense float32; then 10 values, and 100 bits for where.
    assert dense.nbytes() == 408
    assert TopK(keep=0.1).update(dense, torch.Generator()).nbytes() == 10 * 4 + 13 + 8


def test_the_attacker_ignores_the_zeros_that_were_put_in(context: DefenseContext, private: Images) -> None:
    defence = TopK(keep=0.5)
    surrogate = defence.prepare(private, context, None, client=0).surrogate()
    assert surrogate.visible is not None
    assert surrogate.data is None
    cut = defence.update(update({"w": torch.tensor([4.0, -3.0, 2.0, 1.0])}), torch.Generator())
    assert surrogate.visible(cut.tensors)["w"].tolist() == [1, 1, 0, 0]
    assert surrogate.update is not None
    again = surrogate.update(update({"w": torch.tensor([4.0, -3.0, 2.0, 1.0])}), torch.Generator())
    assert torch.equal(again.tensors["w"], cut.tensors["w"])


def test_the_attacker_knows_entries_that_were_zero_of_themselves() -> None:
    surrogate = Stateless(TopK(keep=0.5)).surrogate()
    assert surrogate.visible is not None
    # Two entries could have been sent and one was: the others are zeros of the gradient.
    masks = surrogate.visible({"dead": torch.tensor([0.0, 0.0, 5.0, 0.0]), "full": torch.tensor([[1.0, 0.0]])})
    assert masks["dead"].tolist() == [1, 1, 1, 1]
    assert masks["full"].tolist() == [[1, 0]]
