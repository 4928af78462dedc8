from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedveil.defense.modules import LATENT_CHANNELS, Autoencoder, Inverse, Perturbation, halvings, rms
from fedveil.defense.seeded import seeded

SHAPES = [(1, 28, 28), (3, 32, 32), (1, 30, 30), (3, 30, 30), (1, 33, 47), (3, 33, 47), (1, 12, 12), (3, 9, 65)]


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(shape: tuple[int, int, int], count: int = 2) -> torch.Tensor:
    return torch.rand(count, *shape, generator=stream(1))


@pytest.mark.parametrize("shape", SHAPES)
def test_an_autoencoder_keeps_the_shape(shape: tuple[int, int, int]) -> None:
    model = seeded(lambda: Autoencoder(shape, width=8), stream())
    x = images(shape)
    z = model.encode(x)
    multiple = 2 ** halvings(max(shape[1:]))
    assert z.shape == (2, LATENT_CHANNELS, -(-shape[1] // multiple), -(-shape[2] // multiple))
    assert model.decode(z).shape == x.shape
    assert torch.equal(model(x), model.decode(z))
    assert model.shape == shape


@pytest.mark.parametrize(("size", "times"), [(8, 2), (28, 2), (32, 2), (45, 2), (46, 3), (64, 3), (128, 4), (224, 5)])
def test_the_latent_of_larger_images_stays_about_eight_wide(size: int, times: int) -> None:
    assert halvings(size) == times


@pytest.mark.parametrize("shape", [(1, 30, 30), (3, 33, 47)])
def test_an_autoencoder_sees_and_writes_the_last_row_and_column(shape: tuple[int, int, int]) -> None:
    model = seeded(lambda: Autoencoder(shape, width=8), stream())
    x = images(shape)
    changed = x.clone()
    changed[:, :, -1, -1] += 0.5
    assert not torch.allclose(model.encode(x), model.encode(changed), atol=1e-4)
    z = model.encode(x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.decode(z)[:, :, -1, -1].sum(), z)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("shape", SHAPES)
def test_an_inverse_answers_with_images(shape: tuple[int, int, int]) -> None:
    found = seeded(lambda: Inverse(shape, width=8), stream())(images(shape))
    assert found.shape == (2, *shape)
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("build", [lambda: Autoencoder((1, 30, 30), width=8), lambda: Inverse((1, 30, 30), width=8)])
def test_an_image_is_treated_the_same_alone_and_in_a_batch(build: type[nn.Module]) -> None:
    model = seeded(build, stream())
    x = images((1, 30, 30), count=5)
    torch.testing.assert_close(model(x)[2:3], model(x[2:3]), atol=1e-5, rtol=1e-4)


def test_rms_worked_by_hand() -> None:
    z = torch.tensor([[[[3.0, 4.0]]], [[[0.0, 0.0]]]])
    assert rms(z).shape == (2, 1, 1, 1)
    assert rms(z).flatten().tolist() == pytest.approx([12.5**0.5, 1e-6])


@settings(max_examples=30)
@given(
    st.sampled_from([1e-3, 0.1, 0.5, 1.0, 3.0, 10.0]),
    st.sampled_from([1e-2, 1.0, 50.0]),
    st.integers(1, 3),
    st.tuples(st.integers(2, 8), st.integers(2, 8)),
    st.integers(0, 2**31),
)
def test_a_perturbation_spends_exactly_its_budget(
    strength: float, scale: float, count: int, size: tuple[int, int], seed: int
) -> None:
    own = stream(seed)
    perturbation = seeded(lambda: Perturbation(strength, width=8), own)
    z = scale * torch.randn(count, LATENT_CHANNELS, *size, generator=own)
    with torch.no_grad():
        moved = perturbation(z, torch.randn(z.shape, generator=own))
    spent = (moved - z).double().flatten(1).norm(dim=1)
    torch.testing.assert_close(spent, strength * z.double().flatten(1).norm(dim=1), rtol=2e-3, atol=1e-6)


def test_no_training_can_raise_the_budget() -> None:
    perturbation = seeded(lambda: Perturbation(1.5, width=8), stream())
    z, noise = torch.randn(2, LATENT_CHANNELS, 4, 4, generator=stream(1)), torch.randn(2, 32, 4, 4, generator=stream(2))
    before = perturbation(z, noise)
    louder = copy.deepcopy(perturbation)
    with torch.no_grad():
        for parameter in louder.parameters():
            parameter.mul_(20)
    after = louder(z, noise)
    assert not torch.allclose(before, after)
    for moved in (before, after):
        torch.testing.assert_close((moved - z).flatten(1).norm(dim=1), 1.5 * z.flatten(1).norm(dim=1))


def test_a_perturbation_depends_on_its_noise_and_learns() -> None:
    perturbation = seeded(lambda: Perturbation(1.0, width=8), stream())
    z = torch.randn(2, LATENT_CHANNELS, 4, 4, generator=stream(1))
    first, second = (perturbation(z, torch.randn(z.shape, generator=stream(s))) for s in (2, 3))
    assert not torch.allclose(first, second, atol=1e-2)
    gradients = torch.autograd.grad(first[:, 0].sum(), list(perturbation.parameters()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
