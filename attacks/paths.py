"""Which way a step runs: worked out anew each time, or from a list of its operations.

A function that has run `TRACED_AFTER` times on tensors of the same shapes is traced (see `tracing`), which takes as long as
a few such runs, and saves up to nine tenths of each later one. The list has to give what the function gives; if it does
not, or there can be none, the function goes on as it is. Either way results are equal to the last bit, so that it does
not matter to a replay which way it was.

PyTorch's compiler was tried on the list: two to four minutes for a small network, and hardly faster than the list.

The environment variable ``FEDVEIL_ENGINE`` says otherwise: ``eager`` never traces, ``traced`` does so at once.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fedveil.attacks.fixed import Fixed, Halves
from fedveil.attacks.tracing import Compute, traced
from fedveil.fl.errors import FedveilError

_LOG = logging.getLogger(__name__)

VARIABLE = "FEDVEIL_ENGINE"
TRACED_AFTER = 2
"""Runs of a function on the same shapes before it is traced."""
KEPT = 64
"""Functions per classifier, and shapes, of which a trace is kept."""
_AGREEMENT = {torch.float32: 1e-3, torch.float64: 1e-9}
"""Relative difference between operations and their function that is allowed; on a CPU there is none."""


_WAYS: dict[str, float] = {"auto": TRACED_AFTER, "eager": math.inf, "traced": 0}
"""Runs before a trace."""


@dataclass(eq=False)
class _Path:
    runs: int = 0
    operations: Halves | None = None
    refused: bool = False


_PATHS: WeakKeyDictionary[nn.Module, dict[Hashable, _Path]] = WeakKeyDictionary()


def run(
    owner: nn.Module, name: Hashable, function: Compute, inputs: Sequence[Tensor], fixed: Fixed | None = None
) -> Sequence[Tensor]:
    """Return ``function(*inputs, *fixed.tensors)``, by the fastest path that is known to give it.

    Args:
        owner: paths are kept as long as it is; the function may read it, and nothing else that changes.
        name: equal for functions that do the same to equal inputs.
        function: from tensors to tensors.
        inputs: what it reads; no gradient flows back to them.
        fixed: what it reads beside them, and no call changes.

    Raises:
        FedveilError: ``FEDVEIL_ENGINE`` is not a way that exists.
    """
    way = os.environ.get(VARIABLE, "auto")
    if way not in _WAYS:
        raise FedveilError(f"{VARIABLE}: {way!r} is not allowed; allowed: {', '.join(_WAYS)}")
    fixed = fixed or Fixed()
    every = *inputs, *fixed.tensors
    paths = _PATHS.setdefault(owner, {})
    path = paths.setdefault((name, *((t.shape, t.stride(), t.dtype, t.device) for t in every)), _Path())
    if path.operations is not None and way != "eager":
        return path.operations(inputs, fixed)
    path.runs += 1
    expected = function(*every)
    if path.runs > _WAYS[way] and not path.refused:
        path.operations = _checked(function, inputs, fixed, expected)
        path.refused = path.operations is None
    while len(paths) > KEPT:
        del paths[next(iter(paths))]
    return expected


def _checked(function: Compute, inputs: Sequence[Tensor], fixed: Fixed, expected: Sequence[Tensor]) -> Halves | None:
    """The function's operations, if they give what is expected."""
    try:
        operations = Halves(traced(function, [*inputs, *fixed.tensors]), len(inputs))
        found = operations(inputs, fixed)
    except Exception as error:  # whatever a trace raises; the function itself works
        _LOG.debug("a step goes on untraced: %s: %s", type(error).__name__, error)
        return None
    if all(_near(mine, theirs) for mine, theirs in zip(found, expected, strict=True)):
        return operations
    _LOG.debug("a step goes on untraced: its operations give something else")
    return None


def _near(found: Tensor, expected: Tensor) -> bool:
    found, expected = found.nan_to_num(), expected.nan_to_num()
    return bool((found - expected).norm() <= _AGREEMENT.get(expected.dtype, 1e-2) * expected.norm())
