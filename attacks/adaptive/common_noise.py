"""One draw of noise for all images: what differs between candidates is then the image and not the luck of the draw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class CommonNoise(TorchFunctionMode):
    """While it is active, random tensors with ``count`` rows hold one row, drawn once and repeated.

    Common random numbers, the variance reduction of simulation. Candidates are compared by what the defence makes of
    them on the average of a few draws: with noise of their own, the best of a thousand is one whose noise happens to fit.

    Covered are `torch.randn`, `torch.rand` and their ``_like`` forms. Noise that is drawn in another way stays as it is,
    and costs accuracy only.

    >>> with CommonNoise(3):
    ...     noise = torch.randn((3, 2), generator=torch.Generator().manual_seed(0))
    >>> bool((noise == noise[0]).all()), len(noise)
    (True, 3)

    Args:
        count: images that pass the defence together.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Draw one row in the place of all."""
        kwargs = dict(kwargs or {})
        like = _LIKE.get(func)
        if like is not None and args and len(args[0]) == self._count:
            options = {"dtype": args[0].dtype, "device": args[0].device, **kwargs}
            return self._spread(like, tuple(args[0].shape), options)
        if func in _LIKE.values():
            shape = tuple(kwargs.pop("size", args[0] if args and not isinstance(args[0], int) else args))
            if shape and shape[0] == self._count:
                return self._spread(func, shape, kwargs)
            return func(shape, **kwargs)
        return func(*args, **kwargs)

    def _spread(self, draw: Callable[..., Tensor], shape: tuple[int, ...], options: Mapping[str, Any]) -> Tensor:
        return draw((1, *shape[1:]), **options).repeat(self._count, *[1] * (len(shape) - 1))


_LIKE: Mapping[Callable[..., Tensor], Callable[..., Tensor]] = {
    torch.randn_like: torch.randn,
    torch.rand_like: torch.rand,
}
