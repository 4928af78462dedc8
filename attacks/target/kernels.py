"""Which way a batch of convolutions is computed: by shapes and device, from measurements.

Victims V with N images each have kernels of their own, (V, O, C, h, w), or share some, (O, C, h, w). All ways give the
same numbers but for rounding. What decides on a CPU, with oneDNN:

- a convolution with a group per victim is fast where channels are multiples of 8; else only with the victims innermost in
  memory (and few channels to bring there), or as a matrix product over unfolded images;
- so is the adjoint by the images, save where it is written as a convolution of slopes;
- images of a few channels, and large kernels, are best unfolded.

Few libraries do well by groups on a GPU: there all is matrix products, and what is shared is left to cuDNN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Pair = tuple[int, int]


class Geometry(NamedTuple):
    """How a kernel lies over an image."""

    size: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    @property
    def out(self) -> Pair:
        """Height and width of the result."""
        high, wide = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        )
        return high, wide


_THIN, _FEW, _THICK, _MANY = 8, 16, 2**13, 16
"""Channels of the images, outputs, entries of a kernel's first two dimensions, and images that are worth preparations."""


def _grouped(outputs: int, channels: int, like: Tensor) -> bool:
    """A group per victim beats a matrix product over unfolded images."""
    return like.device.type == "cpu" and channels >= _THIN and outputs * channels < _THICK


def unfolds(weight: Tensor) -> bool:
    """Images of so few channels are made from patches, by kernels (O, C, h, w) whoever has them."""
    return weight.device.type == "cpu" and weight.shape[1] < _THIN


def _innermost(outputs: int, channels: int, x: Tensor) -> bool:
    """A group per victim is worth bringing the victims innermost in memory, which is quick for one image each."""
    uneven = outputs < _FEW and (channels < _THIN or outputs % 8 != 0 or channels % 8 != 0)
    return x.device.type == "cpu" and len(x) >= _MANY and x.shape[1] == 1 and uneven


def convolve(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """(V, N, C, H, W) images, (V, O, C, h, w) kernels to (V, N, O, H', W')."""
    outputs, channels = weight.shape[1:3]
    if channels < _THIN and _innermost(outputs, channels, x):
        kernels = weight.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return _apart(_outermost(forward(inner(x), kernels, geometry, len(x))), len(x))
    if _grouped(outputs, channels, x):
        return _apart(forward(_beside(x), weight.flatten(0, 1), geometry, len(x)), len(x))
    rows = weight.flatten(2) @ unfolded(x, geometry)
    y: Tensor = rows.unflatten(2, (x.shape[1], *geometry.out)).transpose(1, 2)
    return y


def to_images(slope: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """(V, N, O, H', W') slopes, (V, O, C, h, w) kernels to (V, N, C, H, W)."""
    if _grouped(weight.shape[1], weight.shape[2], slope):
        return _apart(by_images(_beside(slope), weight.flatten(0, 1), geometry, len(slope)), len(slope))
    return folded(weight.flatten(2).mT @ _rows(slope), slope.shape[1], geometry)


def to_images_shared(slope: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """(V, N, O, H', W') slopes, (O, C, h, w) kernels to (V, N, C, H, W)."""
    outputs, channels = weight.shape[:2]
    if unfolds(weight):
        return folded(weight.flatten(1).mT @ _rows(slope), slope.shape[1], geometry)
    slopes = slope.flatten(0, 1)
    plain = geometry.dilation == (1, 1) and geometry.stride[0] == geometry.stride[1]
    uneven = slope.device.type == "cpu" and (outputs % 8 != 0 or channels % 8 != 0)
    way = as_convolution if uneven and plain and len(slopes) >= _MANY else by_images
    images: Tensor = way(slopes, weight, geometry).unflatten(0, slope.shape[:2])
    return images


def to_kernels(x: Tensor, slope: Tensor, geometry: Geometry) -> Tensor:
    """(V, N, C, H, W) images, (V, N, O, H', W') slopes to (V, O, C, h, w)."""
    outputs, channels = slope.shape[2], x.shape[2]
    if _innermost(outputs, channels, x):
        kernels = by_kernels(inner(x), inner(slope), geometry, len(x)).contiguous()
    elif _grouped(outputs, channels, x):
        kernels = by_kernels(_beside(x), _beside(slope), geometry, len(x))
    else:
        kernels = _rows(slope) @ unfolded(x, geometry).mT
    return kernels.reshape(len(x), outputs, channels, *geometry.kernel)


def forward(x: Tensor, weight: Tensor, geometry: Geometry, groups: int = 1) -> Tensor:
    """PyTorch's convolution: (N, G C, H, W) images, (G O, C, h, w) kernels to (N, G O, H', W')."""
    return F.conv2d(x, weight, None, geometry.stride, geometry.padding, geometry.dilation, groups)


def by_images(slope: Tensor, weight: Tensor, geometry: Geometry, groups: int = 1) -> Tensor:
    """PyTorch's adjoint of `forward` by the images."""
    x = slope.new_empty(len(slope), groups * weight.shape[1], *geometry.size)
    return _backward(slope, x, weight, geometry, groups, 0)


def by_kernels(x: Tensor, slope: Tensor, geometry: Geometry, groups: int = 1) -> Tensor:
    """PyTorch's adjoint of `forward` by the kernels."""
    weight = slope.new_empty(1).expand(slope.shape[1], x.shape[1] // groups, *geometry.kernel)
    return _backward(slope, x, weight, geometry, groups, 1)


def _backward(slope: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, groups: int, by: int) -> Tensor:
    how = (geometry.stride, geometry.padding, geometry.dilation, False, (0, 0), groups)
    # Of the factor that is asked for, only the shape is read.
    slopes: Sequence[Tensor] = torch.ops.aten.convolution_backward(
        slope, x, weight, None, *how, (by == 0, by == 1, False)
    )
    return slopes[by]


def as_convolution(slope: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """`by_images` of one group, without dilation and with equal strides, as a convolution of the slopes.

    With stride s pixels whose places leave the same remainders see the same part of the kernel: s^2 small kernels, as output
    channels of one convolution, give the phases of an image, which are then interlaced. Pixel s q + r is the sum over d of
    slope[q + d] weight[r + p - s d], where weight is 0 outside of the kernel.
    """
    s = geometry.stride[0]
    margins, around, ends = [], [], []
    for n, k, p, out in zip(geometry.size, geometry.kernel, geometry.padding, geometry.out, strict=True):
        first, last = -((k - 1 - p) // s), (s - 1 + p) // s
        margins.append((s * last - p, s * (1 - first) + p - k))
        around.append((-first, -(-n // s) + last - out))
        ends.append(last - first + 1)
    kernels = F.pad(weight, (*margins[1], *margins[0])).unflatten(3, (ends[1], s)).unflatten(2, (ends[0], s)).flip(2, 4)
    kernels = kernels.permute(1, 3, 5, 0, 2, 4).flatten(0, 2)
    if all(before == after >= 0 for before, after in around):
        padding = around[0][0], around[1][0]
    else:
        slope, padding = F.pad(slope, (*around[1], *around[0])), (0, 0)
    if s == 1:
        return F.conv2d(slope, kernels, padding=padding)
    memory = torch.channels_last
    phases = F.conv2d(slope.contiguous(memory_format=memory), kernels.contiguous(memory_format=memory), padding=padding)
    return F.pixel_shuffle(phases, s)[:, :, : geometry.size[0], : geometry.size[1]].contiguous()


def inner(x: Tensor) -> Tensor:
    """(V, 1, C, ...) to (1, V C, ...) with the victims innermost in memory."""
    # A transposition of a matrix, which PyTorch does faster than a change of the memory format.
    turned = x.flatten(3).flatten(0, 2).t().contiguous()
    return turned.view(1, *x.shape[3:], -1).permute(0, 3, 1, 2)


def _outermost(x: Tensor) -> Tensor:
    """The inverse: (1, V C, H, W) with V C innermost, to the same contiguous."""
    return x[0].flatten(1).contiguous().view(x.shape)


def _beside(x: Tensor) -> Tensor:
    """(V, N, C, ...) to (N, V C, ...)."""
    if x.shape[1] == 1:
        return x.flatten(0, 2)[None]
    return x.transpose(0, 1).flatten(1, 2)


def _apart(x: Tensor, count: int) -> Tensor:
    """The inverse of `_beside`."""
    if len(x) == 1:
        return x.reshape(count, 1, -1, *x.shape[2:])
    apart: Tensor = x.unflatten(1, (count, -1))
    return apart.transpose(0, 1)


def _rows(slope: Tensor) -> Tensor:
    """(V, N, O, H', W') to (V, O, N H' W')."""
    return slope.transpose(1, 2).flatten(2)


def unfolded(x: Tensor, geometry: Geometry) -> Tensor:
    """(V, N, C, H, W) images to (V, C h w, N H' W') patches."""
    (top, left), (below, beside), (down, across) = geometry.padding, geometry.stride, geometry.dilation
    tall, broad = ((k - 1) * d + 1 for k, d in zip(geometry.kernel, geometry.dilation, strict=True))
    # A view for each patch, copied at once: faster than im2col.
    patches = F.pad(x, (left, left, top, top)).unfold(3, tall, below).unfold(4, broad, beside)
    patches = patches[..., ::down, ::across].permute(0, 2, 5, 6, 1, 3, 4)
    return patches.reshape(len(x), x.shape[2] * math.prod(geometry.kernel), -1)


def folded(columns: Tensor, batch: int, geometry: Geometry) -> Tensor:
    """The adjoint of `unfolded`: (V, C h w, N H' W') patches to (V, N, C, H, W) images."""
    patches = columns.unflatten(2, (batch, -1)).transpose(1, 2).flatten(0, 1)
    x = F.fold(patches, geometry.size, geometry.kernel, geometry.dilation, geometry.padding, geometry.stride)
    images: Tensor = x.unflatten(0, (len(columns), batch))
    return images
