"""The executor on Ray: one actor per worker slot, served by pull, replaced when it dies."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import ray
from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from fedveil.fl.errors import FedveilError
from fedveil.fl.progress import Pace
from fedveil.orchestrator.cluster.connection import amounts, check_fit, first_line
from fedveil.orchestrator.cluster.progress import Say, log_to
from fedveil.orchestrator.cluster.slot import RayHandle, SlotActor
from fedveil.orchestrator.cluster.work import Work

if TYPE_CHECKING:
    from fedveil.orchestrator.config.plugins import Plugin

T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result")

LOST = (RayActorError, WorkerCrashedError, OutOfMemoryError, NodeDiedError, ObjectLostError)
"""What Ray raises where a worker, or the machine that held its result, is gone. The item can be run again."""


@dataclass(frozen=True)
class _Start:
    """The slot's new actor is on its way and has to be there by ``deadline`` (monotonic clock, seconds).

    Attributes:
        slot: its number.
        deadline: of this actor.
        died: how many before it died while they started.
    """

    slot: int
    deadline: float
    died: int = 0


class _LateError(FedveilError):
    """A worker did not start in time."""


class RayExecutor:
    """A pool of worker slots, each a Ray actor that trains many clients in turn: a `fedveil.fl.executor.Executor`.

    The pool is there as soon as one of its slots is; the others take up work when they come. Ray has to be connected (see
    `fedveil.orchestrator.cluster.connection`). Close the pool, or use it in a ``with`` block; that ends its own actors only.
    Tasks should return CPU tensors, as the caller may have no GPU.

    Args:
        workers: number of slots.
        cpus_per_worker: cores per slot, also its number of PyTorch threads (rounded down, at least 1).
        gpus_per_worker: share of a GPU per slot; above 0 the slot computes on CUDA where there is any. It
            divides the GPU's time, not its memory.
        spread: slots go to as many nodes as there are, not to as few as have room. Inside a Tune trial its placement group
            has decided.
        start_timeout: seconds within which a slot's actor has to start; work goes on without those that don't, as long as
            there is one.
        max_retries: how often an item is run again after its worker died under it, and how often a worker that died while
            it started is started again.
        plugins: installed in each slot's process before it sees any task.
        name: of the experiment, by which Ray's dashboard shows the slots.

    Attributes:
        say: is told, in the slots' processes, what tasks have to say of long work; None keeps them quiet.
        trial: of what Ray's dashboard shows the tasks.

    Raises:
        FedveilError: the workers do not fit (said at once), or none starts in time.
    """

    def __init__(
        self,
        workers: int,
        *,
        cpus_per_worker: float = 1,
        gpus_per_worker: float = 0,
        spread: bool = False,
        start_timeout: float = 300,  # two minutes were too few on a machine with eight times the work of its cores
        max_retries: int = 2,
        plugins: Sequence[Plugin] = (),
        name: str = "fedveil",
    ) -> None:
        self.trial = name
        self._name = name
        self.start_timeout = start_timeout
        self.max_retries = max_retries
        self.say: Say | None = None
        self._places = check_fit(
            workers, cpus_per_worker=cpus_per_worker, gpus_per_worker=gpus_per_worker, spread=spread
        )
        # Ray must not restart an actor by itself: we would not learn which item was lost.
        self._remote = ray.remote(
            num_cpus=cpus_per_worker, num_gpus=gpus_per_worker, max_restarts=0, max_task_retries=0
        )(SlotActor)
        self._arguments = (max(1, int(cpus_per_worker)), gpus_per_worker > 0, tuple(plugins))
        self._actors: dict[int, Any] = {}
        self._starting: dict[Any, _Start] = {}
        self._closed = False
        try:
            self._fill()
            # Where a node went down meanwhile, there is no room for all of them any more.
            while len(self._starting) == len(self._places):
                for ref in self._first_of([]):
                    self._started(ref)
        except BaseException:
            self.close()
            raise

    def broadcast(self, value: T) -> RayHandle[T]:
        """See `fedveil.fl.executor.Executor.broadcast`."""
        return RayHandle(ray.put(value))

    def map(
        self,
        task: Callable[..., Result],
        items: Sequence[Item],
        *,
        shared: Sequence[object] = (),
        on_lost: Callable[[Item], None] | None = None,
    ) -> list[Result]:
        """See `fedveil.fl.executor.Executor.map`. A failure awaits what runs already, so the pool stays usable.

        Raises:
            FedveilError: an item's worker died under it too often, or none is left and a new one did not start in time.
        """
        if self._closed:
            raise RuntimeError("this RayExecutor is closed")
        self._fill()
        work: Work[Item, Result] = Work(items, on_lost, self.max_retries)
        sent = self.broadcast(tuple(shared))
        # Each item may be too quick to say anything, and all of them together take minutes.
        pace = Pace()
        running: dict[Any, tuple[int, int]] = {}
        starting = {start.slot for start in self._starting.values()}
        free = deque(slot for slot in self._actors if slot not in starting)
        while work.waiting or running:
            while work.waiting and free:
                index = work.waiting.popleft()
                try:
                    run = self._actors[free[0]].run.options(name=f"{self.trial}: {_words(task)}")
                    ref = run.remote(task, items[index], sent, self.say)
                except Exception as error:  # the item cannot be pickled
                    work.fail(error)
                else:
                    running[ref] = (free.popleft(), index)
            for ref in self._first_of(running):
                if ref in self._starting:
                    try:
                        started = self._started(ref)
                        free += [] if started is None else [started]
                    except _LateError as error:
                        # Its node may be gone for good, and the others have taken over; the next call tries again.
                        if not (running or free):
                            work.fail(error)
                        elif self.say is not None:
                            self.say(f"{error}; going on with {len(self._actors)}")
                    except FedveilError as error:
                        work.fail(error)
                else:
                    slot, index = running.pop(ref)
                    if self._collect(ref, slot, index, work):
                        free.append(slot)
                    with log_to(self.say):
                        pace.say(len(work.done) / len(items), f"{_words(task)}: {len(work.done)} of {len(items)}")
        return work.results()

    def close(self) -> None:
        """End this pool's actors. Closing twice does nothing."""
        self._closed = True
        self._starting.clear()
        for slot in list(self._actors):
            self._vacate(slot)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fill(self) -> None:
        """Start an actor in each slot that has none."""
        for slot in range(len(self._places)):
            if slot not in self._actors:
                self._launch(slot)

    def _launch(self, slot: int, died: int = 0) -> None:
        place = self._places[slot]
        chosen = self._remote if place is None else self._remote.options(scheduling_strategy=place)
        actor: Any = chosen.remote(*self._arguments, f"{self._name}: worker {slot}")
        self._actors[slot] = actor
        self._starting[actor.ready.remote()] = _Start(slot, time.monotonic() + self.start_timeout, died)

    def _vacate(self, slot: int) -> None:
        actor = self._actors.pop(slot)
        if ray.is_initialized():  # asking to kill would start Ray again
            ray.kill(actor, no_restart=True)

    def _first_of(self, running: Collection[Any]) -> list[Any]:
        """Wait for a running item or a starting actor and return it, or the actors whose time is up."""
        if not running and not self._starting:
            return []
        deadline = min((start.deadline for start in self._starting.values()), default=None)
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        done, _ = ray.wait([*running, *self._starting], num_returns=1, timeout=timeout)
        return done or [ref for ref, start in self._starting.items() if start.deadline <= time.monotonic()]

    def _started(self, ref: Any) -> int | None:
        """Return the slot whose actor is there now, or None where it died, as with its node, and another one is on its way.

        Raises:
            FedveilError: it did not come in time, died too often or cannot be made at all; the slot is empty.
        """
        start = self._starting.pop(ref)
        slot = start.slot
        try:
            ray.get(ref, timeout=1)
        except GetTimeoutError as error:
            self._vacate(slot)
            free = cast(dict[str, float], ray.available_resources())
            raise _LateError(
                f"worker {slot} of {len(self._places)} did not start within {self.start_timeout:g} s; free on"
                f" the cluster: {amounts({name: free.get(name, 0.0) for name in ('CPU', 'GPU')})}"
            ) from error
        except RayError as error:
            self._vacate(slot)
            # What an actor raises while it is made, the next one would raise again.
            if (
                isinstance(error, LOST)
                and not getattr(error, "actor_init_failed", False)
                and start.died < self.max_retries
            ):
                self._launch(slot, start.died + 1)
                return None
            again = f" {start.died + 1} times" if start.died else ""
            raise FedveilError(
                f"worker {slot} of {len(self._places)} died while it started{again}: {first_line(error)}"
            ) from error
        return slot

    def _collect(self, ref: Any, slot: int, index: int, work: Work[Any, Any]) -> bool:
        """Take in what became of an item. Say if its slot is free; if not, a new actor is on its way."""
        try:
            work.done[index] = ray.get(ref)
        except RayTaskError as error:  # first, since it also is an instance of what the task raised
            work.fail(_cause(error))
        except LOST:
            self._vacate(slot)
            self._launch(slot)
            work.lost(index)
            return False
        except Exception as error:  # the result cannot be unpickled here
            work.fail(error)
        return True


def _words(task: Callable[..., object]) -> str:
    """Return a task's name as Ray's dashboard shows it."""
    return getattr(task, "__name__", type(task).__name__).strip("_").replace("_", " ")


def _cause(error: RayTaskError) -> Exception:
    """Return what the task raised, with the worker's traceback behind it."""
    if not isinstance(error.cause, Exception):
        return error
    error.cause.__cause__ = error
    return error.cause
