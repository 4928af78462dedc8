from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from fedveil.attacks.engine.tracing import Compute, Untraceable, traced

A = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
B = torch.tensor([[0.5, -1.0], [2.0, 0.0]])


def operations(function: Compute, inputs: Sequence[Tensor]) -> list[str]:
    graph = traced(function, inputs).graph
    return [str(node.target).split(".")[1] for node in graph.nodes if node.op == "call_function"]


def test_what_is_done_twice_is_recorded_once() -> None:
    def twice(a: Tensor, b: Tensor) -> list[Tensor]:
        return [(a @ b).sin(), (a @ b).cos()]

    assert operations(twice, [A, B]) == ["mm", "sin", "cos"]
    for mine, theirs in zip(traced(twice, [A, B])(B, A), twice(B, A), strict=True):
        assert torch.equal(mine, theirs)


def test_what_nothing_needs_and_what_changes_nothing_is_left_out() -> None:
    def idle(a: Tensor) -> list[Tensor]:
        a.exp()
        return [a.view(2, 2).permute(0, 1).expand(2, 2).detach() * 2]

    assert operations(idle, [A]) == ["mul"]


def test_a_view_of_a_view_is_one_of_what_is_behind_both() -> None:
    def views(a: Tensor) -> list[Tensor]:
        return [a.T.reshape(4).view(1, 4).view(4, 1) + 1, a.view(4).view(2, 2) * 2]

    assert operations(views, [A]) == ["permute", "clone", "view", "add", "mul"]
    for mine, theirs in zip(traced(views, [A])(B), views(B), strict=True):
        assert torch.equal(mine, theirs)


def test_options_that_say_the_default_make_no_difference_but_others_do() -> None:
    def options(a: Tensor) -> list[Tensor]:
        ones = torch.ones_like(a), torch.ones_like(a, memory_format=torch.preserve_format), torch.ones_like(a).double()
        return [one + a for one in ones]

    found = traced(options, [A])(B)
    assert [one.dtype for one in found] == [torch.float32, torch.float32, torch.float64]
    assert operations(options, [A]).count("ones_like") == 1


def test_a_gradient_shares_its_forward_pass_with_the_value() -> None:
    def both(a: Tensor) -> list[Tensor]:
        def loss(x: Tensor) -> Tensor:
            return x.exp().square().sum()

        return [vmap(loss)(a), vmap(grad(loss))(a)]

    assert operations(both, [A]).count("exp") == 1
    value, slope = traced(both, [A])(B)
    torch.testing.assert_close(value, (2 * B).exp().sum(1))
    torch.testing.assert_close(slope, 2 * (2 * B).exp())


def test_a_change_in_place_is_recorded_out_of_place() -> None:
    def residual(a: Tensor, b: Tensor) -> list[Tensor]:
        out = a * 2
        out += b
        out.relu_()
        return [out, out.view(4)]

    graph = traced(residual, [A, B])
    given = B.clone()
    for mine, theirs in zip(graph(given, A), residual(B, A), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(given, B)
    assert not any(str(node.target).endswith("_.Tensor") for node in graph.graph.nodes)


def reads_an_alias(a: Tensor) -> list[Tensor]:
    out = a * 2
    row = out[0]
    row += 1
    return [out]


def reads_an_older_view(a: Tensor) -> list[Tensor]:
    out = a * 2
    row = out[0]
    out += 1
    return [row]


def changes_its_input(a: Tensor) -> list[Tensor]:
    return [a.mul_(1)]


def reads_a_number(a: Tensor) -> list[Tensor]:
    return [a if float(a.sum()) > 0 else -a]


def draws(a: Tensor) -> list[Tensor]:
    return [a + torch.rand_like(a)]


def selects(a: Tensor) -> list[Tensor]:
    return [a[a > 1].sum()]


@pytest.mark.parametrize(
    "function", [reads_an_alias, reads_an_older_view, changes_its_input, reads_a_number, draws, selects]
)
def test_what_a_list_of_operations_would_get_wrong_is_refused(function: Compute) -> None:
    with pytest.raises(Untraceable):
        traced(function, [A.clone()])


def test_what_is_read_beside_the_inputs_is_constant() -> None:
    shift = torch.tensor([1.0, -1.0])

    def shifted(a: Tensor) -> list[Tensor]:
        return [a + shift, a * shift]

    graph = traced(shifted, [A])
    assert len(list(graph.buffers())) == 1
    for mine, theirs in zip(graph(B), shifted(B), strict=True):
        assert torch.equal(mine, theirs)
