"""Name to class, filled by a decorator; an unknown name is answered with the names that exist."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from fedveil.fl.errors import FedveilError, unknown_name

T = TypeVar("T")
Registered = TypeVar("Registered")


class Registry(Generic[T]):
    """A table of named constructors.

    >>> shapes: Registry[type] = Registry("shape")
    >>> @shapes.register("circle")
    ... class Circle: ...
    >>> shapes["circle"] is Circle
    True
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """Return a decorator that enters its argument under ``name``, which a class without a ``name`` of its own gets too.

        Raises:
            FedveilError: ``name`` is taken already; a class may be defined anew where it stands, as notebooks do.
        """

        def enter(entry: Registered) -> Registered:
            before = self._entries.get(name)
            if before is not None and _source(before) != _source(entry):
                raise FedveilError(f"{self.what} {name!r} is registered twice")
            self._entries[name] = entry  # type: ignore[assignment]
            if isinstance(entry, type) and "name" not in vars(entry):
                entry.name = name  # type: ignore[attr-defined]
            return entry

        return enter

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise unknown_name(self.what, name, self._entries)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))


def _source(entry: object) -> tuple[str, str]:
    kind = entry if hasattr(entry, "__qualname__") else type(entry)
    return kind.__module__, kind.__qualname__
