"""The process behind a worker slot, and what it is sent once and uses often."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import ray
import torch

from fedveil.fl.executor import Handle, Slot
from fedveil.orchestrator.cluster.progress import Say, log_to

if TYPE_CHECKING:
    from fedveil.orchestrator.config.plugins import Plugin

T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_CACHED = 32
"""Broadcast values that a process keeps unpacked: a data set or two and the last rounds' weights, no more."""

_unpacked: OrderedDict[str, Any] = OrderedDict()


class RayHandle(Handle[T]):
    """A value in Ray's object store. It may be put into items, however deep; copies of it are a few bytes.

    Args:
        ref: Ray's reference to it.
    """

    travels = True

    def __init__(self, ref: Any) -> None:
        self._ref = ref

    def get(self) -> T:
        """Return the value. A process unpacks it once, so treat it as read-only."""
        # The key does not keep the object alive: Ray frees it as soon as no handle is left.
        key = self._ref.hex()
        if key not in _unpacked:
            _unpacked[key] = ray.get(self._ref)
        _unpacked.move_to_end(key)
        while len(_unpacked) > MAX_CACHED:
            _unpacked.popitem(last=False)
        return cast(T, _unpacked[key])


class SlotActor:
    """The process behind one worker slot. It keeps models, overwritten by each client, and no other state.

    Args:
        threads: PyTorch's.
        gpu: compute on CUDA where there is any.
        plugins: installed before this process unpickles anything else: an item may hold objects of their classes.
        name: that Ray's dashboard shows.
    """

    def __init__(self, threads: int, gpu: bool, plugins: Sequence[Plugin], name: str) -> None:
        self._name = name
        torch.set_num_threads(threads)
        _keep_freed_memory()
        self._slot = Slot(torch.device("cuda" if gpu and torch.cuda.is_available() else "cpu"))
        if plugins:
            from fedveil.orchestrator.config.plugins import install

            install(plugins)

    def __repr__(self) -> str:
        """What Ray's dashboard shows; a name of Ray's own would stay taken for a while when the actor dies."""
        return self._name

    def ready(self) -> None:
        """Return once the actor is there."""

    def run(
        self, task: Callable[..., Result], item: Item, shared: Handle[tuple[object, ...]], say: Say | None
    ) -> Result:
        """Run the task on this slot, with the values behind ``shared`` and behind the handles among them."""
        values = [value.get() if isinstance(value, Handle) else value for value in shared.get()]
        with log_to(say):
            return task(self._slot, item, *values)


def _keep_freed_memory() -> None:
    """Have the C library keep for the next step what a step of training frees, up to some tens of MiB.

    By default glibc hands back what is free at its heap's end as soon as that is twice the largest block that it ever mapped
    by itself and got back. A process that only ever trained on small batches so gives up its memory after each layer, and
    has the kernel make empty pages again: tens of thousands a round. Freeing one large block, which nobody has written to,
    raises the limit; of 32 MiB and more nothing is learnt.
    """
    torch.empty(31 << 20, dtype=torch.uint8)
