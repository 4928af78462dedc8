"""Layers from elementary operations: a forward-mode derivative of them exists, and can be differentiated rightly once more.

PyTorch's fused batch, layer and instance normalisation take mean and variance for constants when a jvp is differentiated
again, and say nothing (github.com/pytorch/pytorch/issues/196699). Flash attention and a few others have no derivative of
that kind at all. Random masks and noise are replaced by their mean: no attacker knows which units a client dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from fedveil.attacks.target.convolution import convolution, pair
from fedveil.attacks.target.normalisation import standardised
from fedveil.attacks.target.piecewise import mapped, rectified


class Elementary(TorchFunctionMode):
    """While it is active, every model computes those layers from elementary operations, whatever its modules are.

    Args:
        counting: batch normalisation in training counts its batch into the running statistics, in place. No transformed
            function may do that. A client that an attacker plays draws its noise, too.
    """

    def __init__(self, *, counting: bool = False) -> None:
        super().__init__()
        self._counting = counting

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call what stands in for ``func``, or ``func`` itself."""
        if self._counting and func in _COUNTED:
            _COUNTED[func](*args, **(kwargs or {}))
        if self._counting and func is torch.randn_like:
            return func(*args, **(kwargs or {}))
        return _INSTEAD.get(func, func)(*args, **(kwargs or {}))


def _standardised(x: Tensor, start: int, eps: float) -> Tensor:
    """Over all dimensions from ``start`` on, which may be one too many."""
    rows = x.flatten(start) if start < x.ndim else x[..., None]
    return standardised(rows, eps).view(x.shape)


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
    # Without a weight a copy: a derivative remembers x, and what follows may work in place.
    x = x.clone() if weight is None else x * weight.view(shape)
    return x if bias is None else x + bias.view(shape)


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """One value per channel is allowed: its batch statistics hide it altogether."""
    shape = (1, -1, *[1] * (x.ndim - 2))
    if training or running_mean is None or running_var is None:
        # One image needs no transposition.
        x = _standardised(x, 2, eps) if len(x) == 1 else _standardised(x.transpose(0, 1), 1, eps).transpose(0, 1)
    else:
        x = (x - running_mean.view(shape)) * torch.rsqrt(running_var.view(shape) + eps)
    return _scaled(x, weight, bias, shape)


@torch.no_grad()
def _count(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> None:
    """Move the running statistics towards the batch's, as PyTorch does; of one value per channel, with a variance of 0."""
    if not training or running_mean is None or running_var is None:
        return
    values = x.transpose(0, 1).flatten(1)
    running_mean.lerp_(values.mean(1), momentum)
    running_var.lerp_(values.var(1, correction=int(values.shape[1] > 1)), momentum)


def _instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return _batch_norm(x, running_mean, running_var, weight, bias, eps=eps)
    return _scaled(_standardised(x, 2, eps), weight, bias, (1, -1, *[1] * (x.ndim - 2)))


def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    return _scaled(_standardised(x, x.ndim - len(normalized_shape), eps), weight, bias, normalized_shape)


def _group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    y = standardised(x.reshape(len(x), num_groups, -1), eps).view(x.shape)
    return _scaled(y, weight, bias, (1, -1, *[1] * (x.ndim - 2)))


def _avg_pool(
    x: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Where the windows tile small images: a matrix product, on a CPU faster, and as differentiable."""
    high, wide = windows = pair(kernel_size)
    tiles = x.shape[-2] % high == 0 and x.shape[-1] % wide == 0 and pair(stride or windows) == windows
    plain = pair(padding) == (0, 0) and divisor_override is None
    if not (tiles and plain and x.shape[-1] <= 64 and x.device.type == "cpu"):
        strides = pair(stride or windows)
        return F.avg_pool2d(x, windows, strides, pair(padding), ceil_mode, count_include_pad, divisor_override)
    columns = x.shape[-1]
    at = torch.arange(high * columns, device=x.device) % columns // wide
    share = (at[:, None] == torch.arange(columns // wide, device=x.device)).to(x.dtype) / (high * wide)
    return mapped(x.unflatten(-2, (-1, high)).flatten(-2), share)


def _relu(x: Tensor, inplace: bool = False) -> Tensor:
    return F.relu(x, inplace=True) if inplace else rectified(x)


def _attention_module(*args: Any, **kwargs: Any) -> Any:
    with sdpa_kernel(SDPBackend.MATH):
        return F.multi_head_attention_forward(*args, **{**kwargs, "training": False})


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(query, key, value, attn_mask, 0.0, is_causal, **options)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    dims = [d for d in range(v.ndim) if d != dim % v.ndim] if dim != -1 else None
    weight: Tensor = v * (g / torch.linalg.vector_norm(v, dim=dims, keepdim=True))
    return weight


def _identity(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return x


_COUNTED: dict[Any, Callable[..., None]] = {
    F.batch_norm: _count,
    torch.batch_norm: lambda x, weight, bias, mean, var, *rest: _count(x, mean, var, weight, bias, *rest[:3]),
}
_INSTEAD: dict[Any, Callable[..., Any]] = {
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    torch.group_norm: _group_norm,
    torch.conv2d: convolution,
    F.avg_pool2d: _avg_pool,
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), _relu),
    torch.layer_norm: _layer_norm,
    torch.batch_norm: lambda x, weight, bias, mean, var, *rest: _batch_norm(x, mean, var, weight, bias, *rest[:3]),
    torch.instance_norm: lambda x, weight, bias, mean, var, *rest: _instance_norm(
        x, mean, var, weight, bias, *rest[:3]
    ),
    torch._weight_norm: _weight_norm,
    F.multi_head_attention_forward: _attention_module,
    F.scaled_dot_product_attention: _attention,
    F.hardsigmoid: lambda x, inplace=False: (x + 3).clamp(0, 6) / 6,
    F.rrelu: lambda x, lower=1 / 8, upper=1 / 3, *_, **__: F.leaky_relu(x, (lower + upper) / 2),
    **dict.fromkeys(
        (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout), _identity
    ),
    torch.dropout: _identity,
    torch.randn_like: torch.zeros_like,
    torch.bernoulli: lambda p, *_, **__: p,
    Tensor.bernoulli_: lambda x, p=0.5, **_: x.fill_(p),
}
