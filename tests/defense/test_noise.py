from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedveil.defense import DefenseContext, LatentNoise, PixelNoise, TrainedOn
from fedveil.defense.noise import PreparedLatentNoise
from fedveil.defense.public_models import PublicModels
from fedveil.fl.data.images import Images


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_pixel_noise_has_the_set_standard_deviation() -> None:
    x = torch.full((50, 3, 20, 20), 0.5)
    noise = PixelNoise(strength=0.1).data(x, None, stream()) - x
    # 60000 draws: the standard error of the deviation is 0.0003. Clipping starts at five deviations.
    assert noise.std().item() == pytest.approx(0.1, abs=0.0015)
    assert noise.mean().item() == pytest.approx(0, abs=0.002)
    assert noise.abs().max() > 0.35


def test_pixel_noise_is_clipped_to_the_range_of_images() -> None:
    x = torch.zeros(10, 1, 20, 20)
    found = PixelNoise(strength=0.1).data(x, None, stream())
    assert (found == 0).float().mean().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("shape", [(2, 1, 30, 30), (2, 3, 33, 47)])
def test_no_noise_is_no_change(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, generator=stream(1))
    assert torch.equal(PixelNoise(strength=0).data(x, None, stream()), x)


def test_latent_noise_is_white_and_relative_to_the_latents_size(public_models: PublicModels, private: Images) -> None:
    autoencoder = public_models.autoencoder
    x = private.floats()
    found = PreparedLatentNoise(0.5, autoencoder).data(x, None, stream(3))
    with torch.no_grad():
        z = autoencoder.encode(x)
        size = z.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        noise = torch.randn(z.shape, generator=stream(3))
        expected = autoencoder.decode(z + 0.5 * size * noise).clamp(0, 1)
    torch.testing.assert_close(found, expected)


def test_latent_noise_of_no_strength_is_the_autoencoder(public_models: PublicModels, private: Images) -> None:
    x = private.floats()
    found = PreparedLatentNoise(0, public_models.autoencoder).data(x, None, stream())
    with torch.no_grad():
        torch.testing.assert_close(found, public_models.autoencoder(x).clamp(0, 1))
    assert (found - x).square().mean() < 0.002, "the fixture's autoencoder rebuilds images"


def test_more_latent_noise_changes_images_more(public_models: PublicModels, private: Images) -> None:
    x = private.floats()
    errors = [
        (PreparedLatentNoise(s, public_models.autoencoder).data(x, None, stream()) - x).square().mean()
        for s in (0.2, 0.5, 1.0, 2.0)
    ]
    assert errors == sorted(errors)
    assert errors[-1] > 4 * errors[0]


def test_latent_noise_is_trained_on_public_images_alone_and_the_same_for_all_clients(
    context: DefenseContext, private: Images
) -> None:
    defence = LatentNoise(strength=0.1, public_steps=3)
    assert defence.trained_on is TrainedOn.PUBLIC
    autoencoder = defence.pretrain(context)
    first = defence.prepare(private, context, autoencoder, client=0)
    other = defence.prepare(private.take(torch.arange(7)), replace(context, seed=1), autoencoder, client=1)
    assert first == other == PreparedLatentNoise(0.1, autoencoder)
    assert repr(first) == "PreparedLatentNoise(strength=0.1)"
    assert first.diagnostics() == {}


def test_an_autoencoder_follows_the_seed(context: DefenseContext, private: Images) -> None:
    defence = LatentNoise(strength=0.1, public_steps=3)
    first, other = (
        defence.prepare(private, context, defence.pretrain(replace(context, seed=seed)), client=0) for seed in (0, 1)
    )
    x = private.floats()
    assert not torch.equal(first.data(x, None, stream()), other.data(x, None, stream()))
