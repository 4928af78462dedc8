"""Where work runs: the `Executor` protocol, and the serial executor that serves as oracle for all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Generic, Protocol, TypeVar

import torch
from torch import nn

from fedveil.fl.models import ModelSpec, model_on

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Item = TypeVar("Item")
Result = TypeVar("Result")


class Slot:
    """One share of a CPU or GPU, with one model of each kind in memory. It serves many clients, one after another.

    Attributes:
        device: where this slot computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._models: dict[ModelSpec, nn.Module] = {}

    def model(self, spec: ModelSpec) -> nn.Module:
        """Return this slot's model of that kind, built on first use. Its weights are whatever the last user left."""
        if spec not in self._models:
            self._models[spec] = model_on(self.device, spec)
        return self._models[spec]


class Handle(Generic[T_co]):
    """A value that all slots can reach; cheap to send, however large the value. The base class holds it in this process.

    Attributes:
        travels: whether another process can reach the value by it.
    """

    travels: ClassVar[bool] = False

    def __init__(self, value: T_co) -> None:
        self._value = value

    def get(self) -> T_co:
        """Return the value. Treat it as read-only."""
        return self._value


class Executor(Protocol):
    """Runs tasks on worker slots. A task's result must depend on its arguments alone, so that it can be replayed."""

    def broadcast(self, value: T) -> Handle[T]:
        """Make ``value`` available to all slots once, instead of sending it with each item."""

    def map(
        self,
        task: Callable[..., Result],
        items: Sequence[Item],
        *,
        shared: Sequence[object] = (),
        on_lost: Callable[[Item], None] | None = None,
    ) -> list[Result]:
        """Run ``task(slot, item, *shared)`` for each item and return the results in the items' order.

        A free slot takes the next item. If a slot dies, it is replaced and its item is run again; ``on_lost`` is told
        of each item that was lost in this way. An exception that the task raises ends the call and is raised here.

        Args:
            task: a function of a module.
            items: one per call.
            shared: what every call gets. A `Handle` is replaced by its value; any other value is broadcast for this call.
            on_lost: see above.
        """


class SerialExecutor:
    """One slot in this process. Slow, simple, and the oracle of every other executor.

    Args:
        device: where to compute.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._slot = Slot(torch.device(device))

    def broadcast(self, value: T) -> Handle[T]:
        """See `Executor.broadcast`."""
        return Handle(value)

    def map(
        self,
        task: Callable[..., Result],
        items: Sequence[Item],
        *,
        shared: Sequence[object] = (),
        on_lost: Callable[[Item], None] | None = None,
    ) -> list[Result]:
        """See `Executor.map`. Nothing is ever lost here, so ``on_lost`` is never called."""
        values = [value.get() if isinstance(value, Handle) else value for value in shared]
        return [task(self._slot, item, *values) for item in items]
