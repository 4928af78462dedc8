"""How far a reconstruction is from the original: MSE, PSNR and SSIM, one number per image.

All take batches (n, C, H, W) on any device with values in [0, 1]. Anything else is refused rather than
clamped or rescaled, because a silent rescaling changes the score and makes defences incomparable.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fedveil.fl.errors import FedveilError

MAX_PSNR = 100.0
"""PSNR in dB of an exact copy. The true value is infinite and would make every mean over victims infinite."""

SMALLEST_SIDE = 11
"""Pixels a side that SSIM's window takes."""
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03


def check_images(what: str, images: Tensor) -> None:
    """Refuse ``images`` unless they are a (n, C, H, W) floating-point batch with all values in [0, 1].

    Raises:
        FedveilError: wrong shape or type, a value outside [0, 1], or NaN.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise FedveilError(f"{what}: expected (n, C, H, W) floating point, got {tuple(images.shape)} {images.dtype}")
    if images.numel() == 0:
        raise FedveilError(f"{what}: expected at least one image with pixels, got shape {tuple(images.shape)}")
    low, high = images.aminmax()
    if not (low >= 0.0 and high <= 1.0):  # written so that NaN fails too
        raise FedveilError(f"{what}: expected values in [0, 1], got {low.item():.4g} to {high.item():.4g}")


def _check_pair(a: Tensor, b: Tensor) -> None:
    check_images("first batch", a)
    check_images("second batch", b)
    if a.shape != b.shape:
        raise FedveilError(f"images to compare differ in shape: {tuple(a.shape)} and {tuple(b.shape)}")


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Return the (n,) mean squared error per pixel and channel of each image pair.

    Raises:
        FedveilError: the batches differ in shape, or `check_images` refuses one.
    """
    _check_pair(a, b)
    return (a - b).square().flatten(1).mean(1)


def psnr(error: Tensor) -> Tensor:
    """Return 10 log10(1 / error) in dB for each mean squared error of images in [0, 1], at most `MAX_PSNR`.

    It is taken per image; an average over victims is the mean of these, never the PSNR of a mean error.
    """
    return (-10.0 * error.log10()).clamp(max=MAX_PSNR)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Return the (n,) structural similarity of each image pair, at most 1.

    Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity", Eq. 13:
    Gaussian window 11 x 11 with sigma 1.5, K1 = 0.01, K2 = 0.03, data range 1, averaged over the windows that
    lie inside the image and then over channels. Where a side is shorter than the window each pixel is repeated, along both
    sides equally often, until the window fits: the paper has no rule for these.

    Raises:
        FedveilError: as for `mse`.
    """
    _check_pair(a, b)
    repeats = -(-SMALLEST_SIDE // min(a.shape[2:]))
    if repeats > 1:
        a, b = (x.repeat_interleave(repeats, dim=2).repeat_interleave(repeats, dim=3) for x in (a, b))
    n, _, height, width = a.shape
    # Around mid-grey: variances do not change, and E[x^2] - E[x]^2 loses fewer float32 digits.
    x, y = a - 0.5, b - 0.5
    maps = torch.stack([x, y, x * x, y * y, x * y]).reshape(-1, 1, height, width)
    mean_x, mean_y, square_x, square_y, product = _blur(maps).reshape(5, n, -1)
    variance_a, variance_b = square_x - mean_x**2, square_y - mean_y**2
    covariance = product - mean_x * mean_y
    mean_a, mean_b = mean_x + 0.5, mean_y + 0.5
    luminance = (2 * mean_a * mean_b + _K1**2) / (mean_a**2 + mean_b**2 + _K1**2)
    structure = (2 * covariance + _K2**2) / (variance_a + variance_b + _K2**2)
    similarity: Tensor = luminance * structure
    return similarity.mean(1)  # channels have equally many windows: one mean is the mean of means


def small_note(shape: tuple[int, int, int]) -> str | None:
    """Return what has to be said of the scores of (C, H, W) images that are smaller than SSIM's window, else None."""
    _, height, width = shape
    if min(height, width) >= SMALLEST_SIDE:
        return None
    return f"images of {height}x{width} px: SSIM's window takes {SMALLEST_SIDE}, so it is measured on repeated pixels"


def _blur(maps: Tensor) -> Tensor:
    """Convolve (m, 1, H, W) with the Gaussian window, without padding."""
    offsets = torch.arange(SMALLEST_SIDE, dtype=maps.dtype, device=maps.device) - SMALLEST_SIDE // 2
    window = torch.exp(-0.5 * (offsets / _SIGMA) ** 2)
    window = window / window.sum()
    rows = functional.conv2d(maps, window.view(1, 1, -1, 1))
    return functional.conv2d(rows, window.view(1, 1, 1, -1))
