"""One pool of two slots: order, losses, errors, shared values, and room beside it."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import ray
import torch
from ray import cloudpickle, tune
from slot_tasks import Fatal, Weights, cached, die, double, nested_sum, own_pid, pids_of_both, scaled_sum
from torch import nn

from fedveil.fl import progress
from fedveil.fl.errors import FedveilError
from fedveil.fl.executor import Handle, SerialExecutor, Slot
from fedveil.orchestrator.cluster.connection import check_fit, placement_group
from fedveil.orchestrator.cluster.executor import RayExecutor
from fedveil.orchestrator.cluster.slot import MAX_CACHED

# The workers cannot import a test module by name.
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def pool(ray_cluster: None) -> Iterator[RayExecutor]:
    """Two slots of half a core each; the other core is left to the tests that start their own workers."""
    with RayExecutor(2, cpus_per_worker=0.5) as executor:
        yield executor


def log(slot: Slot, item: int) -> None:
    logging.getLogger("fedveil.fl.progress").info("item %d", item)
    logging.getLogger("fedveil.fl.progress").debug("nobody asked")


def test_what_tasks_log_of_long_work_is_told(pool: RayExecutor, tmp_path: Path) -> None:
    def say(text: str) -> None:
        with (tmp_path / "said").open("a") as said:
            said.write(f"{text}\n")

    pool.say = say
    pool.map(log, range(5))
    pool.say = None
    pool.map(log, [5])
    assert sorted((tmp_path / "said").read_text().splitlines()) == [f"item {at}" for at in range(5)]


def test_many_quick_items_say_how_many_are_done(pool: RayExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    pool.say = said.append
    pool.map(double, range(4))
    assert said == []
    monkeypatch.setattr(progress, "EVERY", 0.0)
    pool.map(double, range(4))
    pool.say = None
    # The last one needs no line.
    assert [line.partition(",")[0] for line in said] == [f"double: {done} of 4" for done in (1, 2, 3)]


def test_results_keep_the_items_order(pool: RayExecutor) -> None:
    assert pool.map(double, range(25)) == [2 * item for item in range(25)]
    assert pool.map(double, []) == []


def test_all_slots_work_at_once(pool: RayExecutor, tmp_path: Path) -> None:
    assert len(pids_of_both(pool, tmp_path / "meet")) == 2


def wait_for_the_others(slot: Slot, item: tuple[Path, int]) -> int:
    folder, number = item
    if number == 0:
        while len(list(folder.iterdir())) < 5:
            time.sleep(0.005)
    else:
        (folder / f"{number}").touch()
    return os.getpid()


def test_a_slow_item_does_not_hold_up_the_others(pool: RayExecutor, tmp_path: Path) -> None:
    # Item 0 ends only after the five others have: dealing items out in turn would never end.
    first, *others = pool.map(wait_for_the_others, [(tmp_path, number) for number in range(6)])
    assert len(set(others)) == 1
    assert first not in others


def test_a_lost_worker_is_replaced_and_its_item_replayed(pool: RayExecutor, tmp_path: Path) -> None:
    before = pids_of_both(pool, tmp_path / "before")
    items = [Fatal(tmp_path, number, deaths=int(number == 1)) for number in range(4)]
    lost: list[Fatal] = []
    assert pool.map(die, items, on_lost=lost.append) == [(0, 0), (1, 1), (2, 0), (3, 0)]
    assert lost == [items[1]]
    after = pids_of_both(pool, tmp_path / "after")
    assert len(after) == 2
    assert len(after & before) == 1


def test_an_item_that_keeps_killing_is_named(pool: RayExecutor, tmp_path: Path) -> None:
    lost: list[Fatal] = []
    items = [Fatal(tmp_path, 0, deaths=0), Fatal(tmp_path, 1, deaths=99)]
    strict = RayExecutor(1, cpus_per_worker=0.5, max_retries=1)
    with (
        strict,
        pytest.raises(FedveilError, match=r"item 1 of 2 killed its worker 2 times .*: Fatal\(") as caught,
    ):
        strict.map(die, items, on_lost=lost.append)
    assert "\n" not in str(caught.value)
    assert lost == [items[1]] * 2
    assert len(list(tmp_path.iterdir())) == 2
    strict.close()
    with pytest.raises(RuntimeError, match="closed"):
        strict.map(double, [1])
    assert pool.map(double, [1]) == [2], "closing one pool leaves the others alone"


class Odd(Exception):
    """An exception of the task's own."""


def fail_on_three(slot: Slot, item: int) -> int:
    if item == 3:
        raise Odd("three")
    return item


def fail(slot: Slot, item: Exception) -> NoReturn:
    raise item


def test_an_exception_arrives_as_itself(pool: RayExecutor, tmp_path: Path) -> None:
    with pytest.raises(Odd) as caught:
        pool.map(fail_on_three, range(8))
    assert type(caught.value) is Odd
    assert str(caught.value) == "three"
    assert "fail_on_three" in str(caught.value.__cause__), "the worker's traceback"
    assert len(pids_of_both(pool, tmp_path / "still")) == 2


def test_the_users_errors_stay_one_line(pool: RayExecutor) -> None:
    with pytest.raises(FedveilError) as caught:
        pool.map(fail, [FedveilError("labels are out of range")])
    assert str(caught.value) == "labels are out of range"


def test_an_item_that_cannot_be_sent(pool: RayExecutor, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="pickle"):
        pool.map(own_pid, [1, (number for number in range(3))])
    assert len(pids_of_both(pool, tmp_path / "still")) == 2


def test_tasks_get_the_shared_values_themselves(pool: RayExecutor) -> None:
    handle = pool.broadcast({"w": torch.arange(5.0)})
    assert pool.map(scaled_sum, range(4), shared=(handle, 0.5)) == [0.5, 10.5, 20.5, 30.5]
    assert pool.map(scaled_sum, range(2), shared=({"w": torch.ones(3)}, 0.0)) == [0.0, 3.0]
    assert pool.map(scaled_sum, range(2), shared=(Handle({"w": torch.ones(3)}), 0.0)) == [0.0, 3.0]


def test_a_handle_may_lie_inside_an_item(pool: RayExecutor) -> None:
    handle = pool.broadcast({"w": torch.arange(5.0)})
    assert pool.map(nested_sum, [(handle, factor) for factor in range(4)]) == [0.0, 10.0, 20.0, 30.0]
    assert torch.equal(handle.get()["w"], torch.arange(5.0))
    assert handle.get() is handle.get()


class Counted:
    """A shared value that leaves a mark in a folder whenever it is pickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[type[Counted], tuple[Path]]:
        (self.folder / str(len(list(self.folder.iterdir())))).touch()
        return Counted, (self.folder,)


def marks(slot: Slot, item: int, shared: Counted) -> int:
    return len(list(shared.folder.iterdir()))


def test_a_shared_value_is_sent_once_per_call(pool: RayExecutor, tmp_path: Path) -> None:
    assert pool.map(marks, range(6), shared=(Counted(tmp_path),)) == [1] * 6


def test_old_shared_values_do_not_pile_up(pool: RayExecutor) -> None:
    for value in range(2 * MAX_CACHED):
        weights = {"w": torch.tensor([float(value)])}
        assert pool.map(scaled_sum, [1, 1], shared=(weights, 0.0)) == [float(value)] * 2
    assert max(pool.map(cached, range(4))) <= MAX_CACHED


def test_a_worker_that_finds_no_room_in_time_is_not_waited_for(pool: RayExecutor) -> None:
    # Two cores are declared, so it could fit; but the pool of this module holds one of them.
    with pytest.raises(FedveilError, match=r"did not start within 0\.5 s; free on the cluster: 1 CPU and 0 GPU"):
        RayExecutor(1, cpus_per_worker=2, start_timeout=0.5)


def test_work_begins_with_those_that_are_there(pool: RayExecutor) -> None:
    """As where a node went down while its worker started, and comes back later."""
    with RayExecutor(1, cpus_per_worker=0.5) as third, RayExecutor(2, cpus_per_worker=0.5) as late:
        assert len(set(late.map(own_pid, range(4)))) == 1
        third.close()
        while len(set(late.map(own_pid, range(4)))) == 1:
            time.sleep(0.1)


def threads(slot: Slot, item: object) -> tuple[str, int]:
    return slot.device.type, torch.get_num_threads()


def test_a_slot_computes_on_its_own_share(pool: RayExecutor) -> None:
    assert pool.map(threads, [None]) == [("cpu", 1)]


def train(slot: Slot, seed: int, weights: Weights) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).to(slot.device)
    model.load_state_dict(weights)
    parameters = dict(model.named_parameters())
    for _ in range(5):
        images = torch.rand(16, 1, 8, 8, generator=generator)
        labels = torch.randint(3, (16,), generator=generator)
        loss = nn.functional.cross_entropy(model(images), labels)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        with torch.no_grad():
            for parameter, gradient in zip(parameters.values(), gradients, strict=True):
                parameter.sub_(0.1 * gradient)
    return {name: parameter.detach() for name, parameter in parameters.items()}


def test_training_gives_the_serial_executors_bits(pool: RayExecutor) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"0.weight": (4, 1, 3, 3), "0.bias": (4,), "3.weight": (3, 144), "3.bias": (3,)}
    weights = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        serial = SerialExecutor()
        expected = serial.map(train, range(3), shared=(weights,))
    finally:
        torch.set_num_threads(before)
    got = pool.map(train, range(3), shared=(weights,))
    for one, other in zip(expected, got, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(got[0]["3.weight"], got[1]["3.weight"])


def own_group(slot: Slot, item: Fatal) -> str:
    die(slot, item)
    return str(ray.get_runtime_context().get_placement_group_id())


def trial(config: dict[str, Any]) -> None:
    places = check_fit(2, cpus_per_worker=0.3)
    items = [Fatal(Path(config["folder"]), number, deaths=number) for number in range(2)]
    with RayExecutor(2, cpus_per_worker=0.3) as executor:
        groups = set(executor.map(own_group, items))
    try:
        check_fit(3, cpus_per_worker=0.3)
    except FedveilError as error:
        refused = str(error)
    tune.report(
        {
            "bundles": [place.placement_group_bundle_index for place in places if place is not None],
            "only_the_trials_group": groups == {str(ray.get_runtime_context().get_placement_group_id())},
            "refused": refused,
        }
    )


def test_workers_of_a_trial_sit_in_its_bundles(pool: RayExecutor, tmp_path: Path) -> None:
    # The second worker dies once, and its replacement fits in only when the first has left the bundle.
    marks = tmp_path / "marks"
    marks.mkdir()
    tuner = tune.Tuner(
        tune.with_resources(trial, placement_group(2, cpus_per_worker=0.3, driver_cpus=0.2)),
        param_space={"folder": str(marks)},
        run_config=tune.RunConfig(storage_path=str(tmp_path / "results"), verbose=0),
    )
    result = tuner.fit()[0]
    assert result.error is None
    assert result.metrics is not None
    assert result.metrics["bundles"] == [1, 2]
    assert result.metrics["only_the_trials_group"]
    assert result.metrics["refused"].startswith(
        "3 worker(s) with 0.3 CPU each do not fit: beside its driver's bundle the trial reserved"
        " [0.3 CPU], [0.3 CPU]; missing 1 bundle(s) of 0.3 CPU;"
    )
    assert [mark.name for mark in marks.iterdir()] == ["1-0"]
