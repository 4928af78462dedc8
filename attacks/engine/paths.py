"""Which way a step runs: worked out anew each time, or from a list of its operations.

A function that has run `TRACED_AFTER` times on tensors of the same shapes is traced (see `tracing`), which takes as long as
a few such runs, and saves up to nine tenths of each later one. The list has to give what the function gives; if it does
not, or there can be none, the function goes on as it is.

Which of the two is faster is measured, for each classifier, shape and device, and kept: the runs before the trace and the
first `TRIAL` after it are timed, which costs no run of its own. The list is nearly always faster; but it writes no result in
place, and that may cost more than it saves where tensors are large. Only where both give the same to the last bit do the
times decide, so that results, and a replay's, never hang on them; where they agree but for rounding, as on some GPUs, the
list is taken. For the same reason the order of the two derivatives (`slopes`) and the number of victims in one evaluation
(`engine.at_once`) are fixed by rules, and not by times: they round differently.

PyTorch's compiler is not used on the list: it takes far longer to compile one than most attacks run.

The environment variable ``FEDVEIL_ENGINE`` pins a path: ``eager`` never traces, ``traced`` does so at once, and neither is
timed. A replay that has to equal a run on such a GPU to the last bit pins what that run had pinned.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fedveil.attacks.engine.fixed import Fixed, Halves
from fedveil.attacks.engine.tracing import Compute, traced
from fedveil.fl.errors import FedveilError

_LOG = logging.getLogger(__name__)

VARIABLE = "FEDVEIL_ENGINE"
TRACED_AFTER = 2
"""Runs of a function on the same shapes before it is traced."""
TRIAL = 3
"""Runs of the list that are timed."""
KEPT = 64
"""Functions per classifier, and shapes, of which a trace is kept."""
_AGREEMENT = {torch.float32: 1e-3, torch.float64: 1e-9}
"""Relative difference between operations and their function that is allowed; on a CPU there is none."""


_WAYS: dict[str, float] = {"auto": TRACED_AFTER, "eager": math.inf, "traced": 0}
"""Runs before a trace."""


@dataclass(eq=False)
class _Path:
    """What is known of a function for tensors of some shapes.

    Attributes:
        seconds: that its runs took.
        operations: its list, if there is one.
        exact: the list gives the same to the last bit.
        refused: there is no list, or it is slower.
        trial: seconds that the first runs of the list took.
    """

    seconds: list[float] = field(default_factory=list)
    operations: Halves | None = None
    exact: bool = False
    refused: bool = False
    trial: list[float] = field(default_factory=list)

    def recorded(self, operations: Halves, inputs: Sequence[Tensor], fixed: Fixed, *, timed: bool) -> Sequence[Tensor]:
        """Run the list; the end of its trial decides whether it is kept."""
        if not timed or not self.exact or len(self.trial) == TRIAL:
            return operations(inputs, fixed)
        found = _timed(partial(operations, inputs, fixed), inputs[0].device, self.trial)
        if len(self.trial) == TRIAL and min(self.trial) > min(self.seconds):
            _LOG.debug("a step goes on untraced: its operations take longer")
            self.operations, self.refused = None, True
        return found


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
    compute = partial(function, *inputs, *fixed.tensors)
    if way == "eager":
        return compute()
    paths = _PATHS.setdefault(owner, {})
    path = paths.setdefault(
        (name, *((t.shape, t.stride(), t.dtype, t.device) for t in (*inputs, *fixed.tensors))), _Path()
    )
    if path.operations is not None:
        return path.recorded(path.operations, inputs, fixed, timed=way == "auto")
    if path.refused:
        return compute()
    expected = _timed(compute, inputs[0].device, path.seconds)
    if len(path.seconds) > _WAYS[way]:
        path.operations, path.exact = _checked(function, inputs, fixed, expected)
        path.refused = path.operations is None
    while len(paths) > KEPT:
        del paths[next(iter(paths))]
    return expected


def _timed(compute: Callable[[], Sequence[Tensor]], device: torch.device, seconds: list[float]) -> Sequence[Tensor]:
    """Run a function, and note how long it took."""
    _wait(device)
    begin = perf_counter()
    found = compute()
    _wait(device)
    seconds.append(perf_counter() - begin)
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _checked(
    function: Compute, inputs: Sequence[Tensor], fixed: Fixed, expected: Sequence[Tensor]
) -> tuple[Halves | None, bool]:
    """The function's operations, if they give what is expected, and whether to the last bit."""
    try:
        operations = Halves(traced(function, [*inputs, *fixed.tensors]), len(inputs))
        found = operations(inputs, fixed)
    except Exception as error:  # whatever a trace raises; the function itself works
        _LOG.debug("a step goes on untraced: %s: %s", type(error).__name__, error)
        return None, False
    pairs = [(mine.nan_to_num(), theirs.nan_to_num()) for mine, theirs in zip(found, expected, strict=True)]
    if all(_near(mine, theirs) for mine, theirs in pairs):
        return operations, all(torch.equal(mine, theirs) for mine, theirs in pairs)
    _LOG.debug("a step goes on untraced: its operations give something else")
    return None, False


def _near(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).norm() <= _AGREEMENT.get(expected.dtype, 1e-2) * expected.norm())
