"""What holds for every defence that changes images."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedveil.defense import (
    Defense,
    DefenseContext,
    InstaHide,
    LatentAutoencoder,
    LatentNoise,
    PixelNoise,
    PreparedDefense,
    Stack,
)
from fedveil.fl.data.images import Images

DEFENCES: list[Defense[Any]] = [
    PixelNoise(strength=0.3),
    InstaHide(),
    LatentNoise(strength=0.7, public_steps=3),
    LatentAutoencoder(steps=2, client_steps=1, public_steps=3),
    LatentAutoencoder(steps=2, scope="public", public_steps=3),
    Stack(parts=(LatentNoise(strength=0.7, public_steps=3), PixelNoise(strength=0.1))),
]


@pytest.fixture(scope="module", params=DEFENCES, ids=repr)
def defence(request: pytest.FixtureRequest, context: DefenseContext, private: Images) -> PreparedDefense:
    settings: Defense[Any] = request.param
    return settings.prepare(private, context, settings.pretrain(context), client=0)


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_images_stay_images_and_the_input_stays_as_it_was(defence: PreparedDefense, private: Images) -> None:
    x = private.floats()
    found = defence.data(x, private.labels, stream(0))
    assert torch.equal(x, private.floats())
    assert found.data_ptr() != x.data_ptr()
    assert found.shape == x.shape
    assert found.dtype == torch.float32
    assert found.min() >= 0
    assert found.max() <= 1
    assert not found.requires_grad
    assert not torch.allclose(found, x, atol=1e-2)


def test_noise_is_fresh_for_each_image_and_call_and_follows_the_stream(
    defence: PreparedDefense, private: Images
) -> None:
    x = private.floats()[:1].expand(2, -1, -1, -1)
    own = stream(0)
    first, second = defence.data(x, None, own), defence.data(x, None, own)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert torch.equal(defence.data(x, None, stream(0)), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_labels_do_not_show_in_the_images(defence: PreparedDefense, private: Images) -> None:
    x = private.floats()
    blind = defence.data(x, None, stream(0))
    assert torch.equal(defence.data(x, private.labels, stream(0)), blind)
    assert torch.equal(defence.data(x, 1 - private.labels, stream(0)), blind)


def test_an_attacker_with_the_modules_holds_the_very_defence(defence: PreparedDefense, private: Images) -> None:
    surrogate = defence.surrogate()
    assert surrogate.data is not None
    assert surrogate.update is None
    x = private.floats()
    assert torch.equal(surrogate.data(x, None, stream(5)), defence.data(x, private.labels, stream(5)))
