from __future__ import annotations

import torch
from torch import nn

from fedveil.defense.inverse.muon import Muon, orthogonal
from fedveil.fl.seeding import torch_stream


def test_a_matrix_becomes_about_orthogonal_and_keeps_its_directions() -> None:
    stream = torch_stream(1, "muon")
    for shape in ((8, 8), (8, 20), (20, 8)):
        matrix = torch.randn(shape, generator=stream)
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        found = left.T @ orthogonal(matrix) @ right.T
        kept = found.diagonal()[values > 0.1 * values.max()]
        assert bool(((kept > 0.6) & (kept < 1.3)).all())
        torch.testing.assert_close(found - found.diagonal().diag(), torch.zeros_like(found), atol=1e-3, rtol=0)
        # The length of a gradient does not matter.
        torch.testing.assert_close(orthogonal(100 * matrix), orthogonal(matrix), atol=1e-4, rtol=0)


def test_matrices_are_stepped_by_their_directions_and_the_rest_by_adam() -> None:
    weight, bias, small = (nn.Parameter(torch.zeros(shape)) for shape in ((8, 8), (8,), (2, 3)))
    idle = nn.Parameter(torch.ones(8, 8))
    optimizer = Muon([weight, bias, small, idle], learning_rate=0.5)
    gradient = torch.diag(torch.tensor([3.0, *[1.0] * 7]))
    loss = (weight * gradient).sum() + 5 * bias.sum() - small.sum()
    torch.autograd.backward(loss)
    optimizer.step(0.2)
    # The steep direction is stepped about as far as the others: 0.1 each.
    moved = -weight.detach().diagonal()
    assert bool(((moved > 0.06) & (moved < 0.13)).all())
    # Adam's first step is its rate, a tenth of Muon's.
    torch.testing.assert_close(bias.detach(), torch.full((8,), -0.01))
    torch.testing.assert_close(small.detach(), torch.full((2, 3), 0.01))
    assert torch.equal(idle.detach(), torch.ones(8, 8))
    optimizer.zero_grad()
    assert weight.grad is None
    assert bias.grad is None


def test_a_kernel_is_stepped_as_a_matrix_with_a_row_for_each_output() -> None:
    stream = torch_stream(2, "muon")
    kernel = nn.Parameter(torch.zeros(16, 2, 2, 2))
    gradient = torch.randn(kernel.shape, generator=stream)
    torch.autograd.backward((kernel * gradient).sum())
    Muon([kernel], learning_rate=1.0).step()
    # Twice as many outputs as inputs: the step is longer by the root of 2.
    torch.testing.assert_close(
        kernel.detach().flatten(1), -(2**0.5) * orthogonal(gradient.flatten(1)), atol=1e-4, rtol=0
    )


def test_a_badly_scaled_problem_is_solved_in_few_steps() -> None:
    stream = torch_stream(3, "muon")
    inputs = torch.randn((256, 16), generator=stream) * torch.logspace(0, -1, 16)
    truth = torch.randn((16, 16), generator=stream)
    model = nn.Linear(16, 16, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = Muon(model.parameters(), learning_rate=0.3)
    for step in range(150):
        optimizer.zero_grad()
        loss = (model(inputs) - inputs @ truth).square().mean()
        torch.autograd.backward(loss)
        optimizer.step(1 - step / 150)
    assert float(loss.detach()) < 0.01 * float((inputs @ truth).square().mean())
