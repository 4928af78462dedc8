"""Values that many others hold, such as what all clients' defences learnt on public images: workers get them once."""

from __future__ import annotations

from typing import Any, TypeVar

from fedveil.fl.executor import Executor, Handle

T = TypeVar("T")


class SentOnce:
    """A base: once it is broadcast (`sent_once`), what holds it is pickled with the handle in its place."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        handle = vars(self).get(_HANDLE)
        return super().__reduce_ex__(protocol) if handle is None else (_behind, (handle,))


def sent_once(value: T, executor: Executor) -> T:
    """Broadcast each `SentOnce` in a value, in tuples and in one another, and return the value.

    Args:
        value: stays the same but for how it is pickled, for as long as it lives: it should not outlive the executor.
        executor: an in-process one leaves all as it is, since nothing travels.
    """
    if isinstance(value, tuple):
        for part in value:
            sent_once(part, executor)
    if isinstance(value, SentOnce) and _HANDLE not in vars(value):
        for part in vars(value).values():
            sent_once(part, executor)
        handle = executor.broadcast(value)
        if handle.travels:
            _held(value, handle)
    return value


_HANDLE = "_sent_once"


def _held(value: SentOnce, handle: Handle[Any]) -> None:
    vars(value)[_HANDLE] = handle


def _behind(handle: Handle[SentOnce]) -> SentOnce:
    value = handle.get()
    _held(value, handle)
    return value
