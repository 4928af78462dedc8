"""Where work runs: the `Executor` protocol, and the serial executor that serves as oracle for all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import torch
from torch import nn

from fl.models import ModelSpec, build_model

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Item = TypeVar("Item")
Result = TypeVar("Result")


class Slot:
    """One share of a CPU or GPU, with one model of each kind in memory. It plays many clients, one after another.

    Attributes:
        device: where this slot computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._models: dict[ModelSpec, nn.Module] = {}

    def model(self, spec: ModelSpec) -> nn.Module:
        """Return this slot's model of that kind, built on first use. Its weights are whatever the last user left."""
        if spec not in self._models:
            self._models[spec] = build_model(spec).to(self.device)
        return self._models[spec]


class Handle(Protocol[T_co]):
    """A value that was shared once with all slots; cheap to put into many items."""

    def get(self) -> T_co:
        """Return the value. Treat it as read-only."""


class Executor(Protocol):
    """Runs tasks on worker slots. A task's result must depend on its item alone, so that it can be replayed."""

    def share(self, value: T) -> Handle[T]:
        """Make ``value`` available to all slots once, instead of sending it with each item."""

    def map(
        self,
        task: Callable[[Slot, Item], Result],
        items: Sequence[Item],
        on_lost: Callable[[Item], None] | None = None,
    ) -> list[Result]:
        """Run ``task(slot, item)`` for each item and return the results in the items' order.

        A free slot takes the next item. If a slot dies, it is replaced and its item is run again; ``on_lost`` is told
        of each item that was lost in this way. An exception that the task raises ends the call and is raised here.
        """


class _Held(Generic[T]):
    def __init__(self, value: T) -> None:
        self._value = value

    def get(self) -> T:
        return self._value


class SerialExecutor:
    """One slot in this process. Slow, simple, and the oracle of every other executor.

    Args:
        device: where to compute.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._slot = Slot(torch.device(device))

    def share(self, value: T) -> Handle[T]:
        """See `Executor.share`."""
        return _Held(value)

    def map(
        self,
        task: Callable[[Slot, Item], Result],
        items: Sequence[Item],
        on_lost: Callable[[Item], None] | None = None,
    ) -> list[Result]:
        """See `Executor.map`. Nothing is ever lost here, so ``on_lost`` is never called."""
        return [task(self._slot, item) for item in items]
