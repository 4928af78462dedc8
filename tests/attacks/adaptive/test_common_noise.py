from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fedveil.attacks.adaptive.common_noise import CommonNoise
from fedveil.fl.seeding import torch_stream

LIKE = torch.zeros(3, 2, 4, dtype=torch.float64)


@pytest.mark.parametrize(
    "draw",
    [
        lambda s: torch.randn((3, 2, 4), generator=s, dtype=torch.float64),
        lambda s: torch.randn(3, 2, 4, generator=s, dtype=torch.float64),
        lambda s: torch.randn(size=(3, 2, 4), generator=s, dtype=torch.float64),
        lambda s: torch.randn_like(LIKE, generator=s),
        lambda s: torch.rand(LIKE.shape, generator=s, dtype=torch.float64),
        lambda s: torch.rand_like(LIKE, generator=s),
    ],
    ids=["tuple", "numbers", "size", "like", "uniform", "uniform-like"],
)
def test_all_images_get_the_noise_of_one(draw: Callable[[torch.Generator], Tensor]) -> None:
    with CommonNoise(3):
        noise = draw(torch_stream(0, "noise"))
    assert (noise.shape, noise.dtype) == (LIKE.shape, torch.float64)
    assert torch.equal(noise, noise[:1].expand_as(noise))
    assert noise[0].unique().numel() == 8
    # Cut into other pieces, each image has the same noise.
    with CommonNoise(1):
        alone = torch.randn((1, 2, 4), generator=torch_stream(0, "noise"), dtype=torch.float64)
    if draw(torch_stream(0, "noise")).min() < 0:
        assert torch.equal(alone[0], noise[0])


def test_what_is_no_batch_is_drawn_as_ever() -> None:
    def drawn() -> list[Tensor]:
        stream = torch_stream(0, "noise")
        return [torch.randn((2, 4), generator=stream), torch.rand(5, generator=stream), torch.randn(()).sin() * 0]

    with CommonNoise(3):
        inside = drawn()
    assert all(torch.equal(one, other) for one, other in zip(inside, drawn(), strict=True))
