"""What a finished model's answers pass: `Defense.guard` makes it after the last round, and comes after clients' hooks."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fedveil.defense.base import PreparedDefense


class Guard(ABC):
    """What a defence does to the answers of a finished model. It is never changed once it is made, and can be pickled."""

    @abstractmethod
    def __call__(self, logits: Tensor) -> Tensor:
        """Return the logits (n, k) that go out instead, on the same device: for equal logits equal ones, each time anew."""

    def diagnostics(self) -> dict[str, float]:
        """Numbers about it that belong beside the results."""
        return {}

    def behind(self, prepared: PreparedDefense) -> PreparedDefense:
        """Return a client's prepared defence with this guard after its ``output`` hook."""
        return Guarded(prepared, self)


class Guarded(PreparedDefense):
    """A prepared defence whose answers pass a guard. The model is finished, so the hooks of training are no more asked for.

    Args:
        before: the defence.
        guard: what its answers pass.
    """

    def __init__(self, before: PreparedDefense, guard: Guard) -> None:
        self.before = before
        self.guard = guard

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        """See `fedveil.fl.hooks.ClientHooks.data`."""
        return self.before.data(x, y, stream)

    def output(self, logits: Tensor) -> Tensor:
        """See `fedveil.fl.hooks.ClientHooks.output`."""
        return self.guard(self.before.output(logits))

    def changes(self, hook: str) -> bool:
        """See `PreparedDefense.changes`."""
        return hook == "output" or (hook == "data" and self.before.changes(hook))
