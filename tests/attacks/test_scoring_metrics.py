import math
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity
from torch import Tensor

from fedveil.attacks.scoring.matching import match
from fedveil.attacks.scoring.metrics import MAX_PSNR, mse, psnr, small_note, ssim
from fedveil.fl.errors import FedveilError
from fedveil.fl.seeding import numpy_stream, torch_stream


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch_stream(seed, "test images"))


def smooth(*shape: int, seed: int = 0) -> Tensor:
    return torch.nn.functional.avg_pool2d(images(*shape, seed=seed), 5, stride=1, padding=2)


def test_mse_and_psnr_worked_by_hand() -> None:
    a = torch.zeros(2, 1, 2, 2)
    b = torch.tensor([[[[0.1, 0.1], [0.1, 0.1]]], [[[1.0, 0.0], [0.0, 0.0]]]])
    assert mse(a, b).tolist() == pytest.approx([0.01, 0.25])
    assert psnr(mse(a, b)).tolist() == pytest.approx([20.0, 10 * math.log10(4)])


def test_an_exact_copy_scores_finitely_and_leaves_the_other_scores_alone() -> None:
    # breaching's psnr_compute: one exact match makes the whole batch infinite
    a = images(2, 1, 12, 12)
    b = torch.stack([a[0], a[1].clamp(0.2, 0.8)])
    error = mse(a, b)
    assert psnr(error)[0].item() == MAX_PSNR == 100.0
    assert psnr(error)[1].item() == pytest.approx(-10 * math.log10(error[1].item()), rel=1e-5)
    assert ssim(a, b)[0].item() == pytest.approx(1.0, abs=1e-6)


def test_psnr_is_per_image_so_averages_are_means_of_psnr() -> None:
    values = psnr(torch.tensor([1e-1, 1e-3]))
    assert values.tolist() == pytest.approx([10.0, 30.0])
    assert values.mean().item() == pytest.approx(20.0)  # the PSNR of the mean error would be 13 dB


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [11, 28, 33])
@pytest.mark.parametrize("noise", [0.0, 0.03, 0.5])
def test_ssim_equals_scikit_image(channels: int, side: int, noise: float) -> None:
    a = smooth(4, channels, side, side)
    b = (a + noise * (images(4, channels, side, side, seed=1) - 0.5)).clamp(0, 1)
    expected = [
        structural_similarity(  # type: ignore[no-untyped-call]
            x.double().numpy(),
            y.double().numpy(),
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
        )
        for x, y in zip(a, b, strict=True)
    ]
    assert ssim(a, b).tolist() == pytest.approx(expected, abs=1e-4)


def test_ssim_uses_data_range_one_whatever_the_images_span() -> None:
    # LeakPro took range 6; a range read from the images would call faint images dissimilar
    a = torch.full((1, 1, 11, 11), 0.5)
    b = torch.full((1, 1, 11, 11), 0.6)
    # constant images: only the luminance term (2 * 0.5 * 0.6 + 1e-4) / (0.25 + 0.36 + 1e-4) is left
    assert ssim(a, b).item() == pytest.approx(0.6001 / 0.6101, abs=1e-5)


def test_ssim_of_images_smaller_than_its_window_is_that_of_repeated_pixels() -> None:
    a, b = images(2, 1, 5, 32), images(2, 1, 5, 32).flip(0)
    # Three times 5 are the first 11 or more.
    large_a, large_b = (x.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3) for x in (a, b))
    assert torch.equal(ssim(a, b), ssim(large_a, large_b))
    assert ssim(a, a).tolist() == pytest.approx([1.0, 1.0])
    assert small_note((1, 5, 32)) == "images of 5x32 px: SSIM's window takes 11, so it is measured on repeated pixels"
    assert small_note((1, 11, 32)) is None


@pytest.mark.parametrize("metric", [mse, ssim, match])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.full((2, 1, 12, 12), 1.01), r"in \[0, 1\], got 1.01 to 1.01"),
        (torch.full((2, 1, 12, 12), -1e-3), r"in \[0, 1\]"),
        (torch.full((2, 1, 12, 12), float("nan")), r"in \[0, 1\], got nan"),
        (torch.zeros(2, 12, 12), r"\(n, C, H, W\)"),
        (torch.zeros(2, 1, 12, 12, dtype=torch.uint8), "floating point"),
        (torch.zeros(0, 1, 12, 12), "at least one image"),
        (torch.zeros(3, 1, 12, 12), "differ|expected"),
    ],
)
def test_what_is_not_an_image_in_range_is_refused_not_clamped(
    metric: Callable[[Tensor, Tensor], Tensor], bad: Tensor, message: str
) -> None:
    with pytest.raises(FedveilError, match=message):
        metric(bad, torch.zeros(2, 1, 12, 12))


def test_one_nan_pixel_is_refused() -> None:
    a = images(2, 1, 12, 12)
    a[1, 0, 3, 4] = float("nan")
    with pytest.raises(FedveilError, match="got nan"):
        mse(a, images(2, 1, 12, 12))


@given(st.integers(0, 2**31), st.integers(1, 5), st.sampled_from([1, 3]))
@settings(max_examples=25)
def test_laws_of_the_metrics(seed: int, n: int, channels: int) -> None:
    a, b = images(n, channels, 12, 13, seed=seed), images(n, channels, 12, 13, seed=seed + 1)
    assert torch.equal(mse(a, b), mse(b, a))
    torch.testing.assert_close(ssim(a, b), ssim(b, a))
    assert bool((ssim(a, b) <= 1.0 + 1e-6).all())
    assert bool((mse(a, a) == 0).all())
    alone = torch.cat([mse(x[None], y[None]) for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(mse(a, b), alone)


@given(st.permutations(range(6)), st.integers(0, 2**31))
@settings(max_examples=25)
def test_match_undoes_any_shuffle(shuffle: list[int], seed: int) -> None:
    originals = images(6, 1, 12, 12, seed=seed)
    order = match(originals[shuffle], originals)
    assert torch.equal(originals[shuffle][order], originals)


def test_match_is_one_to_one_where_the_nearest_reconstruction_would_be_used_twice() -> None:
    # Plato, GIAS: the minimum over the batch lets one good reconstruction stand for every victim
    originals = torch.stack([torch.full((1, 11, 11), v) for v in (0.50, 0.40, 0.00)])
    reconstructed = torch.stack([torch.full((1, 11, 11), v) for v in (1.00, 0.45, 0.90)])
    order = match(reconstructed, originals)
    assert sorted(order.tolist()) == [0, 1, 2]
    # one row per original; the cheapest one-to-one sum is .25 + .25 + .2025 = .7025
    costs = np.array([[0.25, 0.0025, 0.16], [0.36, 0.0025, 0.25], [1.0, 0.2025, 0.81]])
    assert costs[range(3), order.tolist()].sum() == pytest.approx(0.7025)


def test_match_finds_the_least_sum_over_all_permutations() -> None:
    stream = numpy_stream(0, "match oracle")
    for _ in range(10):
        a, b = (torch.as_tensor(stream.random((5, 1, 3, 3)), dtype=torch.float32) for _ in range(2))
        best = min(mse(a[list(p)], b).sum().item() for p in permutations(range(5)))
        assert mse(a[match(a, b)], b).sum().item() == pytest.approx(best, rel=1e-6)
