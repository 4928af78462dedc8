from __future__ import annotations

from collections.abc import Callable

import torch

from fedveil.defense.inverse.variation import mirrors, varied
from fedveil.fl.data.images import Images
from fedveil.fl.seeding import torch_stream

Blobs = Callable[..., Images]


def test_images_are_varied_and_some_stay(blobs: Blobs) -> None:
    x = blobs(200, 1).floats()
    before = x.clone()
    found = varied(x, torch_stream(1, "varied"))
    assert torch.equal(x, before)
    assert found.shape == x.shape
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    apart = (found - x).square().mean((1, 2, 3))
    assert 20 < int((apart < 1e-10).sum()) < 60
    assert 0.001 < float(apart.mean()) < 0.03
    assert torch.equal(found, varied(x, torch_stream(1, "varied")))


def test_half_of_the_images_are_mirrored_along_an_axis(blobs: Blobs) -> None:
    x = blobs(100, 1).floats()
    found = varied(x, torch_stream(1, "varied"), mirrored=(2,))
    flipped = (found - x.flip(2)).square().mean((1, 2, 3)) < (found - x).square().mean((1, 2, 3))
    assert 30 < int(flipped.sum()) < 70


def test_the_data_say_along_which_axes_they_may_be_mirrored() -> None:
    stream = torch_stream(1, "mirrors")
    noise = 0.2 * torch.rand((80, 1, 8, 8), generator=stream)
    side = torch.linspace(0, 0.8, 8).view(1, 1, 1, 8)
    labels = torch.zeros(80, dtype=torch.int64)
    # Bright on the right, and nothing that tells up from down.
    upright = Images(((noise + side) * 255).to(torch.uint8), labels)
    assert mirrors(upright) == (2,)
    assert mirrors(Images((noise * 255).to(torch.uint8), labels)) == (2, 3)
    assert mirrors(upright.take(torch.arange(3))) == ()
