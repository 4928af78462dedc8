"""A 2-D convolution whose derivatives are fast where every victim has weights, or a gradient, of its own.

A convolution is bilinear, and so are its two adjoints; each one's derivatives are the other two. `torch.func.vmap` turns
those with a factor per victim into grouped convolutions, which few libraries do well. Here they are one batched matrix
product over the unfolded images; equal unfoldings are shared once a step is traced.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

Pair = tuple[int, int]
Dims = tuple[int | None, ...]


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


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d`, from bilinear parts where it has one group and a symmetric padding in numbers."""
    if groups != 1 or x.ndim != 4 or isinstance(padding, str):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    size, kernel = (x.shape[2], x.shape[3]), (weight.shape[2], weight.shape[3])
    geometry = Geometry(size, kernel, pair(stride), pair(padding), pair(dilation))
    y: Tensor = _Convolve.apply(x, weight, geometry)
    return y if bias is None else y + bias[:, None, None]


def pair(value: int | Sequence[int]) -> Pair:
    """A number for height and width, as layers take it."""
    if isinstance(value, int):
        return value, value
    return (value[0], value[-1])


_THIN, _THICK = 8, 2**13
"""Channels of the images, and entries of a kernel's first two dimensions."""


def _grouped(outputs: int, channels: int, like: Tensor) -> bool:
    """Whether a convolution with a group per victim is faster than a matrix product over unfolded images.

    So it was with oneDNN on a CPU where images have a few channels at least, and kernels are not large. Few libraries do
    it well on a GPU.
    """
    return like.device.type == "cpu" and channels >= _THIN and outputs * channels < _THICK


class _Bilinear(Function):
    """What the three have in common: saved factors, the product rule, and batches in front."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        left, right, ctx.geometry = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(left, right)
        ctx.save_for_forward(left, right)


def _product_rule(rule: type[Function], ctx: Any, left_t: Tensor | None, right_t: Tensor | None) -> Tensor | None:
    left, right = ctx.saved_tensors
    pairs = ((left_t, right), (left, right_t))
    terms: list[Tensor] = [rule.apply(a, b, ctx.geometry) for a, b in pairs if a is not None and b is not None]
    return sum(terms[1:], start=terms[0]) if terms else None


class _Convolve(_Bilinear):
    """(N, C, H, W) images, (O, C, h, w) kernels to (N, O, H', W')."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        return _convolve(x, weight, geometry, 1)

    @staticmethod
    def backward(ctx: Any, slope: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        if slope is None:
            return None, None, None
        x, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        return (
            _ToImages.apply(slope, weight, ctx.geometry) if needs[0] else None,
            _ToKernels.apply(x, slope, ctx.geometry) if needs[1] else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor | None, weight_t: Tensor | None, _: None) -> Tensor | None:
        return _product_rule(_Convolve, ctx, x_t, weight_t)

    @staticmethod
    def vmap(info: Any, dims: Dims, x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[Tensor, int]:
        if dims[1] is None:
            x = x.movedim(dims[0] or 0, 0)
            y = _Convolve.apply(x.flatten(0, 1), weight, geometry)
            return y.unflatten(0, x.shape[:2]), 0
        x, weight = _batched(info, dims, x, weight)
        if _grouped(weight.shape[1], weight.shape[2], x):
            return _apart(_convolve(_beside(x), weight.flatten(0, 1), geometry, len(x)), len(x)), 0
        y = weight.flatten(2) @ unfolded(x, geometry)
        return y.unflatten(2, (x.shape[1], *geometry.out)).transpose(1, 2), 0


class _ToImages(_Bilinear):
    """The adjoint by the images: (N, O, H', W') slopes, (O, C, h, w) kernels to (N, C, H, W)."""

    @staticmethod
    def forward(slope: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        return _to_images(slope, weight, geometry, 1)

    @staticmethod
    def backward(ctx: Any, grown: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        if grown is None:
            return None, None, None
        slope, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        return (
            _Convolve.apply(grown, weight, ctx.geometry) if needs[0] else None,
            _ToKernels.apply(grown, slope, ctx.geometry) if needs[1] else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, slope_t: Tensor | None, weight_t: Tensor | None, _: None) -> Tensor | None:
        return _product_rule(_ToImages, ctx, slope_t, weight_t)

    @staticmethod
    def vmap(info: Any, dims: Dims, slope: Tensor, weight: Tensor, geometry: Geometry) -> tuple[Tensor, int]:
        if dims[1] is None:
            slope = slope.movedim(dims[0] or 0, 0)
            if slope.device.type == "cpu" and weight.shape[1] < _THIN:
                return folded(weight.flatten(1).mT @ _rows(slope), slope.shape[1], geometry), 0
            x = _ToImages.apply(slope.flatten(0, 1), weight, geometry)
            return x.unflatten(0, slope.shape[:2]), 0
        slope, weight = _batched(info, dims, slope, weight)
        if _grouped(weight.shape[1], weight.shape[2], slope):
            x = _to_images(_beside(slope), weight.flatten(0, 1), geometry, len(slope))
            return _apart(x, len(slope)), 0
        columns = weight.flatten(2).mT @ _rows(slope)
        return folded(columns, slope.shape[1], geometry), 0


class _ToKernels(_Bilinear):
    """The adjoint by the kernels: (N, C, H, W) images, (N, O, H', W') slopes to (O, C, h, w)."""

    @staticmethod
    def forward(x: Tensor, slope: Tensor, geometry: Geometry) -> Tensor:
        return _to_kernels(x, slope, geometry, 1)

    @staticmethod
    def backward(ctx: Any, grown: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        if grown is None:
            return None, None, None
        x, slope = ctx.saved_tensors
        needs = ctx.needs_input_grad
        return (
            _ToImages.apply(slope, grown, ctx.geometry) if needs[0] else None,
            _Convolve.apply(x, grown, ctx.geometry) if needs[1] else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor | None, slope_t: Tensor | None, _: None) -> Tensor | None:
        return _product_rule(_ToKernels, ctx, x_t, slope_t)

    @staticmethod
    def vmap(info: Any, dims: Dims, x: Tensor, slope: Tensor, geometry: Geometry) -> tuple[Tensor, int]:
        x, slope = _batched(info, dims, x, slope)
        if _grouped(slope.shape[2], x.shape[2], x):
            kernels = _to_kernels(_beside(x), _beside(slope), geometry, len(slope))
            return kernels.unflatten(0, (len(slope), -1)), 0
        kernels = _rows(slope) @ unfolded(x, geometry).mT
        return kernels.unflatten(2, (x.shape[2], *geometry.kernel)), 0


def _convolve(x: Tensor, weight: Tensor, geometry: Geometry, groups: int) -> Tensor:
    return F.conv2d(x, weight, None, geometry.stride, geometry.padding, geometry.dilation, groups)


def _to_images(slope: Tensor, weight: Tensor, geometry: Geometry, groups: int) -> Tensor:
    x = slope.new_empty(1).expand(len(slope), groups * weight.shape[1], *geometry.size)
    return _backward(slope, x, weight, geometry, groups, 0)


def _to_kernels(x: Tensor, slope: Tensor, geometry: Geometry, groups: int) -> Tensor:
    weight = slope.new_empty(1).expand(slope.shape[1], x.shape[1] // groups, *geometry.kernel)
    return _backward(slope, x, weight, geometry, groups, 1)


def _backward(slope: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, groups: int, by: int) -> Tensor:
    how = (geometry.stride, geometry.padding, geometry.dilation, False, (0, 0), groups)
    # Of the factor that is asked for, only the shape is read.
    slopes: Sequence[Tensor] = torch.ops.aten.convolution_backward(
        slope, x, weight, None, *how, (by == 0, by == 1, False)
    )
    return slopes[by]


def _beside(x: Tensor) -> Tensor:
    """(V, N, C, ...) to (N, V C, ...)."""
    return x.transpose(0, 1).flatten(1, 2)


def _apart(x: Tensor, count: int) -> Tensor:
    """The inverse of `_beside`."""
    apart: Tensor = x.unflatten(1, (count, -1))
    return apart.transpose(0, 1)


def _batched(info: Any, dims: Dims, *tensors: Tensor) -> list[Tensor]:
    return [
        t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
        for t, d in zip(tensors, dims, strict=False)
    ]


def _rows(slope: Tensor) -> Tensor:
    """(V, N, O, H', W') to (V, O, N H' W')."""
    return slope.transpose(1, 2).flatten(2)


def unfolded(x: Tensor, geometry: Geometry) -> Tensor:
    """(V, N, C, H, W) images to (V, C h w, N H' W') patches."""
    (top, left), (below, beside), (down, across) = geometry.padding, geometry.stride, geometry.dilation
    tall, broad = ((k - 1) * d + 1 for k, d in zip(geometry.kernel, geometry.dilation, strict=True))
    # A view for each patch, copied at once: several times faster than im2col.
    patches = F.pad(x, (left, left, top, top)).unfold(3, tall, below).unfold(4, broad, beside)
    patches = patches[..., ::down, ::across].permute(0, 2, 5, 6, 1, 3, 4)
    return patches.reshape(len(x), x.shape[2] * math.prod(geometry.kernel), -1)


def folded(columns: Tensor, batch: int, geometry: Geometry) -> Tensor:
    """The adjoint of `unfolded`: (V, C h w, N H' W') patches to (V, N, C, H, W) images."""
    patches = columns.unflatten(2, (batch, -1)).transpose(1, 2).flatten(0, 1)
    x = F.fold(patches, geometry.size, geometry.kernel, geometry.dilation, geometry.padding, geometry.stride)
    images: Tensor = x.unflatten(0, (len(columns), batch))
    return images
