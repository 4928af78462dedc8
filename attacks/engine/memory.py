"""How much memory a computation takes, and how much there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedveil.fl import memory


@dataclass(frozen=True)
class Footprint:
    """What a computation allocates, in bytes.

    Attributes:
        largest: its largest tensor.
        peak: all of its tensors that live at once.
    """

    largest: int
    peak: int


def footprint(compute: Callable[[], object]) -> Footprint:
    """Run a computation, and return what it allocates beside what it was given."""
    with _Meter() as meter:
        compute()
    return Footprint(meter.largest, meter.peak)


class _Meter(TorchDispatchMode):
    """Weighs every storage that an operation brings forth, until it is gone."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = self.peak = self._held = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation, and weigh its results."""
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            known = self._alive.get(storage._cdata)
            if storage._cdata in given or (known is not None and not known[0].expired()):
                continue
            self._held += storage.nbytes() - (known[1] if known else 0)
            self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
            self.largest = max(self.largest, storage.nbytes())
        if self._held > self.peak:
            # Only then does it matter what is gone by now.
            self._alive = {key: one for key, one in self._alive.items() if not one[0].expired()}
            self._held = sum(size for _, size in self._alive.values())
            self.peak = max(self.peak, self._held)
        return result


def _storages(values: object) -> Iterable[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that are free on a device, on a CPU within the container's limit; None where that can't be told."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else memory.free_memory()
