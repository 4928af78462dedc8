from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedveil.attacks.matching.spectrum import InSpectrum, NaturalSpectrum
from fedveil.attacks.matching.starts import start_of
from fedveil.fl.seeding import torch_stream

SHAPES = st.tuples(st.sampled_from((1, 2, 3)), st.integers(1, 9), st.integers(1, 9))


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch_stream(seed, "spectrum"), dtype=torch.float64)


def parted(shape: tuple[int, int, int]) -> tuple[NaturalSpectrum, Tensor, Tensor]:
    images = 0.5 + 0.3 * drawn((2, 3, *shape), 0)
    return NaturalSpectrum.like(images), images, drawn(images.shape, 1)


@given(SHAPES)
def test_images_and_variables_are_each_others_inverse(shape: tuple[int, int, int]) -> None:
    spectrum, images, variables = parted(shape)
    torch.testing.assert_close(spectrum.images(spectrum.variables(images)), images)
    torch.testing.assert_close(spectrum.variables(spectrum.images(variables)), variables)


@given(SHAPES)
def test_gradients_are_pulled_by_the_transposed_map(shape: tuple[int, int, int]) -> None:
    spectrum, slope, variables = parted(shape)
    forwards = ((spectrum.images(variables) - 0.5) * slope).sum()
    torch.testing.assert_close((variables * spectrum.pulled(slope)).sum(), forwards)


def test_two_by_two_pixels_worked_by_hand() -> None:
    """Frequencies 0 and 1 count as 1, the diagonal as root 2; the scale's mean square is that of pixels: 1/16."""
    spectrum = NaturalSpectrum.like(torch.zeros(1, 2, 2, dtype=torch.float64))
    unit = 0.25 / math.sqrt((1 + 1 + 1 + 0.5) / 4)
    for at, picture in (
        ((0, 0), [[1, 1], [1, 1]]),
        ((0, 1), [[1, -1], [1, -1]]),
        ((1, 1), [[2**-0.5, -(2**-0.5)], [-(2**-0.5), 2**-0.5]]),
    ):
        variables = torch.zeros(1, 2, 2, dtype=torch.float64)
        variables[(0, *at)] = 1
        expected = 0.5 + unit / 2 * torch.tensor([picture], dtype=torch.float64)
        torch.testing.assert_close(spectrum.images(variables), expected)


def test_white_variables_have_the_contrast_and_the_colours_of_images() -> None:
    variables = torch.randn(500, 3, 32, 32, generator=torch_stream(2, "spectrum"))
    images = NaturalSpectrum.like(variables).images(variables) - 0.5
    assert float(images.square().mean().sqrt()) == pytest.approx(0.25, rel=0.02)
    grey, red_blue = images.mean(1).std(), (images[:, 0] - images[:, 2]).std() / math.sqrt(2)
    assert float(red_blue / (math.sqrt(3) * grey)) == pytest.approx(0.496 / 1.645, rel=0.05)


class Toward:
    """The squared distance of images from some others, and a note whether it was asked for images alone."""

    def __init__(self, others: Tensor) -> None:
        self.others = others
        self.asked: list[Tensor] = []

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.asked.append(x)
        gap = x - self.others
        return gap.square().flatten(1).sum(1), 2 * gap

    def take(self, at: Tensor) -> Toward:
        return Toward(self.others[at])


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_the_gradient_is_that_of_the_objective(weight: float) -> None:
    spectrum, others, variables = parted((3, 4, 5))
    inner = Toward(others)
    objective = InSpectrum(inner, spectrum, weight)
    value, slope = objective(variables)
    assert all(float(asked.min()) >= 0 and float(asked.max()) <= 1 for asked in inner.asked)
    assert bool(((spectrum.images(variables) < 0) | (spectrum.images(variables) > 1)).any())

    def total(variables: Tensor) -> Tensor:
        images = spectrum.images(variables)
        inside = images.clamp(0, 1)
        outside = (images - inside).square().flatten(1).mean(1)
        own = (inside - others).square().flatten(1).sum(1)
        return own + outside + weight * variables.square().flatten(1).mean(1)

    torch.testing.assert_close(value, total(variables))
    torch.testing.assert_close(slope, torch.func.grad(lambda one: total(one).sum())(variables))
    second = objective.take(torch.tensor([1]))(variables[1:])
    torch.testing.assert_close(second, (value[1:], slope[1:]))


def test_a_natural_start_is_faint_and_another_for_each_stream() -> None:
    one, two = (start_of("natural", (2, 3, 16, 16), torch_stream(seed, "start")) for seed in (0, 1))
    assert 1e-5 < float((one - 0.5).abs().max()) < 0.02
    assert not torch.equal(one, two)
