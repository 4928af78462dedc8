from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedveil.defense.dependence import EPSILON, coco, gaussian_kernel, linear_kernel, normalised_hsic

shapes = st.tuples(st.integers(2, 7), st.integers(1, 5), st.integers(0, 1000))


def rows(count: int, width: int, seed: int) -> Tensor:
    return torch.randn((count, width), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one_hot(labels: list[int], classes: int) -> Tensor:
    return torch.eye(classes, dtype=torch.float64)[labels]


# Worked by hand. Of two examples H = [[1, -1], [-1, 1]] / 2 =: P, a projection on one direction, and both K H and H K H of
# K = [[1, a], [a, 1]] are (1 - a) P.


@pytest.mark.parametrize("a", [0.0, 0.5, 0.9])
def test_two_examples_by_hand(a: float) -> None:
    kernel, labels = torch.tensor([[1, a], [a, 1]], dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    expected = (1 - a) / (1 - a + 2 * EPSILON) / (1 + 2 * EPSILON)
    assert float(normalised_hsic(kernel, labels)) == pytest.approx(expected, rel=1e-9)
    assert float(coco(kernel, labels)) == pytest.approx(math.sqrt(1 - a) / 2, rel=1e-9)


def test_a_gaussian_kernel_by_hand() -> None:
    # The squared distance of (0, 0) and (3, 4) is 25, halved by two dimensions: exp(-25 / (2 * 4 * 2)).
    found = gaussian_kernel(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), 2.0)
    torch.testing.assert_close(found, torch.tensor([[1, math.exp(-25 / 16)], [math.exp(-25 / 16), 1]]).double())
    assert linear_kernel(torch.tensor([[1.0, 2.0], [3.0, -1.0]])).tolist() == [[5, 1], [1, 10]]


# Against slow oracles


@settings(max_examples=25, deadline=None)
@given(shapes, st.floats(0.3, 8))
def test_kernels_are_those_of_the_definition(shape: tuple[int, int, int], width: float) -> None:
    x = rows(*shape)
    slow = np.empty((len(x), len(x)))
    for i in range(len(x)):
        for j in range(len(x)):
            squared = sum((float(a) - float(b)) ** 2 for a, b in zip(x[i], x[j], strict=True))
            slow[i, j] = math.exp(-squared / (2 * width**2 * x.shape[1]))
    np.testing.assert_allclose(gaussian_kernel(x, width).numpy(), slow, rtol=1e-9, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(shapes, st.integers(0, 1000))
def test_measures_are_those_of_the_definition(shape: tuple[int, int, int], seed: int) -> None:
    count = shape[0]
    first, second = gaussian_kernel(rows(*shape), 1.0), gaussian_kernel(rows(count, 3, seed), 1.0)
    h = np.eye(count) - np.ones((count, count)) / count

    def normalised(kernel: Tensor) -> np.ndarray:
        centred = kernel.numpy() @ h
        return np.asarray(centred @ np.linalg.inv(centred + EPSILON * count * np.eye(count)))

    expected = np.trace(normalised(first) @ normalised(second))
    assert float(normalised_hsic(first, second)) == pytest.approx(float(expected), rel=1e-6, abs=1e-9)
    product = h @ first.numpy() @ h @ h @ second.numpy() @ h
    frobenius = math.sqrt(sum(float(value) ** 2 for value in product.flatten()))
    assert float(coco(first, second)) == pytest.approx(math.sqrt(frobenius) / count, rel=1e-6, abs=1e-6)


# Laws


@settings(max_examples=25, deadline=None)
@given(shapes, st.integers(0, 1000))
def test_order_place_and_turn_do_not_matter_and_both_count_alike(shape: tuple[int, int, int], seed: int) -> None:
    x, y = rows(*shape), rows(shape[0], 2, seed)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    turn = torch.linalg.qr(rows(shape[1], shape[1], seed + 1))[0]
    other = gaussian_kernel(y, 2.0)
    kernel = gaussian_kernel(x, 2.0)
    torch.testing.assert_close(gaussian_kernel(x @ turn + 5, 2.0), kernel)
    torch.testing.assert_close(gaussian_kernel(torch.cat([x, x], 1), 2.0), kernel, msg="a width is per dimension")
    for measure in (normalised_hsic, coco):
        found = measure(kernel, other)
        torch.testing.assert_close(measure(other, kernel), found, rtol=1e-6, atol=1e-9)
        shuffled = measure(gaussian_kernel(x[order], 2.0), gaussian_kernel(y[order], 2.0))
        torch.testing.assert_close(shuffled, found, rtol=1e-6, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(shapes, st.lists(st.integers(0, 3), min_size=7, max_size=7))
def test_it_lies_between_zero_and_what_the_rank_allows(shape: tuple[int, int, int], labels: list[int]) -> None:
    kernel, named = gaussian_kernel(rows(*shape), 1.0), labels[: shape[0]]
    y = linear_kernel(one_hot(named, 4))
    found = float(normalised_hsic(kernel, y))
    assert -1e-9 <= found <= min(shape[0] - 1, len(set(named)) - 1) + 1e-9
    assert -1e-9 <= float(normalised_hsic(kernel, kernel)) <= shape[0] - 1 + 1e-9


@pytest.mark.parametrize("classes", [2, 5, 8])
def test_of_labels_it_saturates_at_the_number_of_classes_less_one(classes: int) -> None:
    y = linear_kernel(one_hot([at % classes for at in range(64)], classes))
    assert float(normalised_hsic(y, y)) == pytest.approx(classes - 1, rel=1e-3)


def test_independent_vectors_of_many_dimensions_do_not_read_zero() -> None:
    images, features = torch.rand(64, 784, generator=torch.Generator().manual_seed(0)), rows(64, 300, 1)
    floor = float(normalised_hsic(gaussian_kernel(images, 5.0), gaussian_kernel(features, 5.0)))
    assert floor > 0.5 * 63


@pytest.mark.parametrize("measure", [normalised_hsic, coco])
def test_slopes_exist_where_nothing_is_to_depend_on(measure: object) -> None:
    assert callable(measure)
    same = linear_kernel(one_hot([1, 1, 1], 2))
    x = torch.tensor([[0.0], [1.0], [2.0]], requires_grad=True)
    found = measure(gaussian_kernel(x, 1.0), same)
    assert float(found) == pytest.approx(0, abs=1e-6)
    (slope,) = torch.autograd.grad(found, x)
    assert bool(slope.isfinite().all())


@pytest.mark.parametrize("measure", [normalised_hsic, coco])
def test_slopes_are_those_of_differences(measure: object) -> None:
    assert callable(measure)
    x, y = rows(4, 2, 0).requires_grad_(True), linear_kernel(one_hot([0, 1, 2, 0], 3))
    assert torch.autograd.gradcheck(lambda x: measure(gaussian_kernel(x, 1.0), y), (x,))
