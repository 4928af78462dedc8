from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import torch

from fedveil.fl.data.images import Images
from fedveil.fl.executor import Handle, SerialExecutor
from fedveil.fl.sent_once import SentOnce, sent_once

_store: dict[int, bytes] = {}


class Elsewhere(Handle[Any]):
    """A handle to a copy that another process holds."""

    travels = True

    def __init__(self, number: int) -> None:
        self.number = number

    def get(self) -> Any:
        return pickle.loads(_store[self.number])  # noqa: S301


class Far(SerialExecutor):
    def broadcast(self, value: Any) -> Handle[Any]:
        _store[len(_store)] = pickle.dumps(value)
        return Elsewhere(len(_store) - 1)


@dataclass(frozen=True, eq=False)
class Inner(SentOnce):
    numbers: torch.Tensor


@dataclass(frozen=True, eq=False)
class Outer(SentOnce):
    inner: Inner
    more: torch.Tensor


def value() -> Outer:
    return Outer(Inner(torch.arange(5000)), torch.ones(3000))


def passed(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))  # noqa: S301


def test_what_holds_it_carries_a_handle_and_so_does_what_came_from_one() -> None:
    whole = value()
    assert len(pickle.dumps(whole)) > 50_000
    (same, other) = sent_once((whole, "else"), Far())
    assert same is whole
    assert other == "else"
    for times in range(3):
        holder = {"share": whole, "inner": whole.inner}
        assert len(pickle.dumps(holder)) < 500, times
        whole = passed(holder)["share"]
        assert torch.equal(whole.inner.numbers, torch.arange(5000))
        assert torch.equal(whole.more, torch.ones(3000))


def test_parts_are_sent_once_too_and_nothing_twice() -> None:
    whole = value()
    _store.clear()
    sent_once(whole, Far())
    assert sorted(map(len, _store.values()))[0] < 20_000, "the outer one holds the inner one's handle"
    assert len(_store) == 2
    sent_once(whole, Far())
    assert len(_store) == 2


def test_in_one_process_nothing_changes() -> None:
    whole = sent_once(value(), SerialExecutor())
    again = passed(whole)
    assert torch.equal(again.inner.numbers, whole.inner.numbers)


def test_images_taken_from_those_that_were_sent_are_images_of_their_own() -> None:
    images = sent_once(Images(torch.zeros(50, 1, 8, 8, dtype=torch.uint8), torch.arange(50)), Far())
    assert len(pickle.dumps(images)) < 500
    some = passed(images.take(torch.tensor([3, 4])))
    assert some.labels.tolist() == [3, 4]
    assert len(pickle.dumps(images.take(torch.arange(50)))) > 3200
