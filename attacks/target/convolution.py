"""A 2-D convolution whose derivatives are fast where every victim has weights, or a gradient, of its own.

A convolution is bilinear, and so are its two adjoints; each one's derivatives are the other two. `torch.func.vmap` turns
those with a factor per victim into grouped convolutions, which few libraries do well. Here they are one batched matrix
product over the unfolded images; equal unfoldings are shared once a step is traced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from fedveil.attacks.target import kernels
from fedveil.attacks.target.kernels import Geometry, Pair

Dims = tuple[int | None, ...]


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
        return kernels.forward(x, weight, geometry)

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
        return kernels.convolve(*_batched(info, dims, x, weight), geometry), 0


class _ToImages(_Bilinear):
    """The adjoint by the images: (N, O, H', W') slopes, (O, C, h, w) kernels to (N, C, H, W)."""

    @staticmethod
    def forward(slope: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        return kernels.by_images(slope, weight, geometry)

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
        slope, weight = ctx.saved_tensors
        if slope_t is not None and weight_t is not None and kernels.unfolds(weight):
            # Outputs beside each other: what is folded is folded once.
            slopes, weights = torch.cat([slope_t, slope], 1), torch.cat([weight, weight_t])
            return _ToImages.apply(slopes, weights, ctx.geometry)  # type: ignore[no-any-return]
        return _product_rule(_ToImages, ctx, slope_t, weight_t)

    @staticmethod
    def vmap(info: Any, dims: Dims, slope: Tensor, weight: Tensor, geometry: Geometry) -> tuple[Tensor, int]:
        if dims[1] is None:
            return kernels.to_images_shared(slope.movedim(dims[0] or 0, 0), weight, geometry), 0
        return kernels.to_images(*_batched(info, dims, slope, weight), geometry), 0


class _ToKernels(_Bilinear):
    """The adjoint by the kernels: (N, C, H, W) images, (N, O, H', W') slopes to (O, C, h, w)."""

    @staticmethod
    def forward(x: Tensor, slope: Tensor, geometry: Geometry) -> Tensor:
        return kernels.by_kernels(x, slope, geometry)

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
        return kernels.to_kernels(*_batched(info, dims, x, slope), geometry), 0


def _batched(info: Any, dims: Dims, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    first, second = (
        t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
        for t, d in zip((left, right), dims, strict=False)
    )
    return first, second
