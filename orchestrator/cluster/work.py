"""What a pool of workers has handed out of a call's items, got back and lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from fedveil.fl.errors import FedveilError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Work(Generic[Item, Result]):
    """What one `RayExecutor.map` call has handed out, got back and lost. It knows items, not actors."""

    def __init__(self, items: Sequence[Item], on_lost: Callable[[Item], None] | None, max_retries: int) -> None:
        self.items = items
        self.waiting = deque(range(len(items)))
        self.failure: Exception | None = None
        self.done: dict[int, Result] = {}
        self._losses = [0] * len(items)
        self._on_lost = on_lost
        self._max_retries = max_retries

    def fail(self, error: Exception) -> None:
        """Hand out nothing more. The first failure is the one that the caller gets."""
        self.failure = self.failure or error
        self.waiting.clear()

    def lost(self, index: int) -> None:
        """Put the item first in the queue, unless it cost too many workers."""
        item = self.items[index]
        self._losses[index] += 1
        if self._on_lost is not None:
            self._on_lost(item)
        if self._losses[index] > self._max_retries:
            self.fail(
                FedveilError(
                    f"item {index} of {len(self.items)} killed its worker {self._losses[index]} times"
                    f" (max_retries {self._max_retries}): {' '.join(repr(item).split()):.100}"
                )
            )
        elif self.failure is None:
            self.waiting.appendleft(index)

    def results(self) -> list[Result]:
        """Return the results in the items' order, or raise what made the call fail."""
        if self.failure is not None:
            raise self.failure
        return [self.done[index] for index in range(len(self.items))]
