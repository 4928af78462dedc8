"""How much memory a step takes, and how many victims fit into it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SHARE = 0.5
"""Of the memory that is free, so much may be used."""


@dataclass(frozen=True)
class Footprint:
    """What a computation allocates, in bytes.

    Attributes:
        largest: the largest single tensor.
        peak: of all that lived at once.
    """

    largest: int
    peak: int


def footprint(compute: Callable[[], object]) -> Footprint:
    """Run a computation, and return what it allocated beside what was there before."""
    with _Meter() as meter:
        compute()
    return Footprint(meter.largest, meter.peak)


class _Meter(TorchDispatchMode):
    """Counts each storage from its first sight to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.peak = self._live = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            key = storage._cdata
            if key in given or key in self._known:
                continue
            size = storage.nbytes()
            self._known.add(key)
            self._live += size
            self.largest, self.peak = max(self.largest, size), max(self.peak, self._live)
            weakref.finalize(storage, self._gone, key, size)
        return result

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._live -= size


def _storages(values: object) -> Iterable[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device: on a CPU within the limits of the process's control group."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return min(int(fields["MemAvailable"].split()[0]) * 1024, *_left_in_groups())
