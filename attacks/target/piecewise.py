"""Linear maps and rectifiers, whose derivatives are the maps themselves.

PyTorch's forward derivative of a backward pass through them adds products with tangents that are all 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def mapped(x: Tensor, matrix: Tensor) -> Tensor:
    """Return ``x @ matrix``, (..., m) and (m, n) to (..., n), where the matrix is a constant."""
    y: Tensor = _Map.apply(x, matrix)
    return y


def rectified(x: Tensor) -> Tensor:
    """Return max(x, 0), of any shape, with slope 0 at 0."""
    y: Tensor = _Rectify.apply(x)
    return y


class _Map(Function):
    @staticmethod
    def forward(x: Tensor, matrix: Tensor) -> Tensor:
        return x @ matrix

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, slope: Tensor | None) -> tuple[Tensor | None, None]:
        return (None if slope is None else _Map.apply(slope, ctx.saved_tensors[0].mT)), None

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor | None, _: Any) -> Tensor | None:
        return None if x_t is None else _Map.apply(x_t, *ctx.saved_tensors)

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], x: Tensor, matrix: Tensor) -> tuple[Tensor, int]:
        return _Map.apply(x.movedim(dims[0] or 0, 0), matrix), 0


class _Rectify(Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.relu()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, slope: Tensor | None) -> Tensor | None:
        return None if slope is None else _Gate.apply(slope, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor | None) -> Tensor | None:
        return None if x_t is None else _Gate.apply(x_t, *ctx.saved_tensors)

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], x: Tensor) -> tuple[Tensor, int]:
        return _Rectify.apply(x.movedim(dims[0] or 0, 0)), 0


class _Gate(Function):
    """``slope`` where the rectifier's output y is above 0; it does not depend on y but by jumps."""

    @staticmethod
    def forward(slope: Tensor, y: Tensor) -> Tensor:
        gated: Tensor = torch.ops.aten.threshold_backward(slope, y, 0)
        return gated

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, slope: Tensor | None) -> tuple[Tensor | None, None]:
        return (None if slope is None else _Gate.apply(slope, *ctx.saved_tensors)), None

    @staticmethod
    def jvp(ctx: Any, slope_t: Tensor | None, _: Any) -> Tensor | None:
        return None if slope_t is None else _Gate.apply(slope_t, *ctx.saved_tensors)

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], slope: Tensor, y: Tensor) -> tuple[Tensor, int]:
        slope, y = (
            t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
            for t, d in zip((slope, y), dims, strict=True)
        )
        return _Gate.apply(slope, y), 0
