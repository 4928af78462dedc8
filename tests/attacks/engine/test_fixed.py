from __future__ import annotations

import torch
from torch import Tensor

from fedveil.attacks.engine.fixed import Fixed, Halves
from fedveil.attacks.engine.tracing import traced

X, A, B = torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0.5, 4.0])


def function(x: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
    shift = torch.arange(2) * 3
    return [(a @ a.T) @ x + shift, b.sqrt() * x + a.sum(), b.exp()]


def names(operations: object) -> list[str]:
    graph = operations.__self__.graph  # type: ignore[attr-defined]
    return [str(node.target).split(".")[1] for node in graph.nodes if node.op == "call_function"]


def test_what_depends_on_nothing_that_changes_is_made_once() -> None:
    halves = Halves(traced(function, [X, A, B]), 1)
    assert names(halves.before) == ["arange", "mul", "permute", "mm", "sqrt", "sum"]
    # What is returned is made anew, since its owner may change it.
    assert sorted(names(halves._after)) == ["add", "add", "exp", "mul", "mv"]


def test_both_halves_give_what_the_function_gives() -> None:
    halves = Halves(traced(function, [X, A, B]), 1)
    for fixed in (Fixed([A, B]), Fixed([A + 1, B * 2])):
        for x in (X, 2 * X):
            for found, expected in zip(halves([x], fixed), function(x, *fixed.tensors), strict=True):
                assert torch.equal(found, expected)


def test_what_was_made_is_not_what_is_handed_out() -> None:
    halves, fixed = Halves(traced(function, [X, A, B]), 1), Fixed([A, B])
    for one in halves([X], fixed):
        one.zero_()
    for found, expected in zip(halves([X], fixed), function(X, A, B), strict=True):
        assert torch.equal(found, expected)
