"""Standardisation of rows, with its first two derivatives in closed form.

Let s(x) = (x - mean) r, r = 1 / sqrt(variance + eps), over a row of n numbers. It is the gradient of n sqrt(variance + eps),
so that all its derivatives are symmetric:

    s'(x)[a]     = r (a - mean(a) - y mean(y a)),   y = s(x)
    s''(x)[a, b] = -r (mean(y a) s'[b] + mean(y b) s'[a] + mean(s'[a] b) y)

Forward and reverse mode need the same: a tangent's image is also a slope's. PyTorch's fused kernels compute the first
two; differentiated again by themselves they take mean and variance for constants (github.com/pytorch/pytorch/issues/196699).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def standardised(x: Tensor, eps: float) -> Tensor:
    """Return (..., n) numbers with mean 0 and variance 1 in each row (a little less: ``eps`` is added to the variance)."""
    y: Tensor = _Standardise.apply(x, eps)[0]
    return y


class _Standardise(Function):
    """s(x), with each row's mean and r."""

    @staticmethod
    def forward(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        return torch.native_layer_norm(x, x.shape[-1:], None, None, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0], *output)
        ctx.save_for_forward(inputs[0], *output)

    @staticmethod
    def backward(ctx: Any, slope: Tensor | None, *_: None) -> tuple[Tensor | None, None]:
        return (None if slope is None else _Differential.apply(*ctx.saved_tensors, slope)), None

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor | None, _: None) -> tuple[Tensor | None, None, None]:
        return (None if x_t is None else _Differential.apply(*ctx.saved_tensors, x_t)), None, None

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], x: Tensor, eps: float) -> tuple[Any, Any]:
        return _Standardise.apply(x.movedim(dims[0] or 0, 0), eps), (0, 0, 0)


class _Differential(Function):
    """s'(x)[a] from x, s(x), the rows' mean and r, and a; the derivative by x is whole, though three others come from x."""

    @staticmethod
    def forward(x: Tensor, y: Tensor, mean: Tensor, r: Tensor, a: Tensor) -> Tensor:
        slopes: tuple[Tensor, ...] = torch.ops.aten.native_layer_norm_backward(
            a.contiguous(), x, x.shape[-1:], mean, r, None, None, (True, False, False)
        )
        return slopes[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, b: Tensor | None) -> tuple[Tensor | None, None, None, None, Tensor | None]:
        if b is None:
            return None, None, None, None, None
        x, y, mean, r, a, sa = ctx.saved_tensors
        sb = _Differential.apply(x, y, mean, r, b)
        needs = ctx.needs_input_grad
        return (_Second.apply(y, r, a, b, sa, sb) if needs[0] else None), None, None, None, (sb if needs[4] else None)

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor | None, _y: Any, _mean: Any, _r: Any, a_t: Tensor | None) -> Tensor | None:
        x, y, mean, r, a, sa = ctx.saved_tensors
        terms: list[Tensor] = []
        if a_t is not None:
            terms.append(_Differential.apply(x, y, mean, r, a_t))
        if x_t is not None:
            terms.append(_Second.apply(y, r, a, x_t, sa, _Differential.apply(x, y, mean, r, x_t)))
        return sum(terms[1:], start=terms[0]) if terms else None

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        return _Differential.apply(*_batched(info, dims, tensors)), 0


class _Second(Function):
    """s''(x)[a, b] from s(x), r, a, b and what s'(x) makes of a and b. It is the last: no derivative of it is right."""

    @staticmethod
    def forward(y: Tensor, r: Tensor, a: Tensor, b: Tensor, sa: Tensor, sb: Tensor) -> Tensor:
        scale = -r / y.shape[-1]
        first = scale * _dot(y, a) * sb
        return first.addcmul(scale * _dot(y, b), sa).addcmul(scale * _dot(sa, b), y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> None:
        raise NotImplementedError("a normalisation's gradient can be differentiated once, no more")

    @staticmethod
    def jvp(ctx: Any, *_: Tensor | None) -> None:
        raise NotImplementedError("a normalisation's gradient can be differentiated once, no more")

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        return _Second.apply(*_batched(info, dims, tensors)), 0


def _batched(info: Any, dims: tuple[int | None, ...], tensors: tuple[Tensor, ...]) -> list[Tensor]:
    return [
        t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
        for t, d in zip(tensors, dims, strict=True)
    ]


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Inner product of each row: (..., n) twice to (..., 1)."""
    return (left * right).sum(-1, keepdim=True)
