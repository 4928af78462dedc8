from __future__ import annotations

from collections.abc import Callable

import torch

from fedveil.attacks.engine.distances import squared_distance
from fedveil.attacks.engine.objective import Problem, objective, oracle
from fedveil.attacks.presets.latent import Latent, train_decoder
from fedveil.attacks.target.model import target_model
from fedveil.defense.modules import Autoencoder
from fedveil.fl.data.images import Images
from fedveil.fl.models import ModelSpec, build_model
from fedveil.fl.seeding import torch_stream

SPEC = ModelSpec("lenet", (1, 8, 8), 3, width=3)

Blobs = Callable[..., Images]


def test_its_slope_is_autograds_through_the_decoder() -> None:
    stream = torch_stream(4, "latent")
    model = target_model(build_model(SPEC), image_shape=SPEC.image_shape, classes=3)
    model.module.double()
    weights = {n: p.detach() for n, p in model.module.named_parameters()}
    target = {n: torch.randn((3, *w.shape), generator=stream, dtype=torch.float64) for n, w in weights.items()}
    problem = Problem(model, weights, target, torch.zeros((3, 2), dtype=torch.int64))
    autoencoder = Autoencoder(SPEC.image_shape, width=8).double().requires_grad_(False)
    middle = torch.randn((32, 2, 2), generator=stream, dtype=torch.float64)
    width = torch.tensor(0.7, dtype=torch.float64)
    z = torch.randn((3, 2, 32, 2, 2), generator=stream, dtype=torch.float64)
    latent = Latent(objective(problem, distance=squared_distance), autoencoder, middle, width)
    value, slope = latent(z)

    leaf = z.clone().requires_grad_(True)
    made = autoencoder.decode(middle + 0.7 * leaf.flatten(0, 1)).clamp(0, 1).view(3, 2, 1, 8, 8)
    theirs, by_images = oracle(problem, distance=squared_distance)(made)
    (their_slope,) = torch.autograd.grad((made * by_images).sum(), leaf)
    torch.testing.assert_close(value, theirs, rtol=1e-9, atol=1e-12)
    assert float((slope - their_slope).norm() / their_slope.norm()) < 1e-8
    at = torch.tensor([2, 0])
    torch.testing.assert_close(latent.take(at)(z[at])[0], value[at])


def test_the_decoder_makes_images_like_those_it_was_trained_on(blobs: Blobs) -> None:
    trained = train_decoder(blobs(64, 3), steps=150, device=torch.device("cpu"), stream=torch_stream(0, "decoder"))
    x = blobs(8, 4).floats()
    assert float((trained(x) - x).square().mean()) < 0.1 * float((x - x.mean(0)).square().mean())
    assert not any(parameter.requires_grad for parameter in trained.parameters())
