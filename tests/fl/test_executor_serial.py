import pytest
import torch

from fedveil.fl.executor import Handle, SerialExecutor, Slot
from fedveil.fl.models import ModelSpec

SPEC = ModelSpec("convnet", (1, 12, 12), classes=3, width=4)


def double(slot: Slot, item: int) -> int:
    return 2 * item


def broken(slot: Slot, item: int) -> int:
    raise ZeroDivisionError(f"item {item}")


def test_results_keep_the_items_order_and_nothing_is_lost() -> None:
    lost: list[int] = []
    executor = SerialExecutor()
    assert executor.map(double, [3, 1, 2], on_lost=lost.append) == [6, 2, 4]
    assert executor.map(double, []) == []
    assert lost == []


def test_an_exception_of_the_task_is_raised_and_the_executor_stays_usable() -> None:
    executor = SerialExecutor()
    with pytest.raises(ZeroDivisionError, match="item 5"):
        executor.map(broken, [5, 6])
    assert executor.map(double, [1]) == [2]


def scaled(slot: Slot, item: int, factor: int, offsets: list[int]) -> int:
    return factor * item + offsets[item]


def given(slot: Slot, item: int, *shared: object) -> tuple[object, ...]:
    return shared


def test_a_task_gets_the_shared_values_after_its_item() -> None:
    assert SerialExecutor().map(scaled, [0, 1, 2], shared=(10, [5, 6, 7])) == [5, 16, 27]


def test_a_handle_among_the_shared_is_replaced_by_its_value_and_any_other_value_is_passed_as_it_is() -> None:
    executor, held, plain = SerialExecutor(), object(), object()
    handle = executor.broadcast(held)
    assert isinstance(handle, Handle)
    assert handle.get() is held
    [first, second] = executor.map(given, [0, 1], shared=(handle, plain))
    assert first == second == (held, plain)


def test_all_items_run_on_one_slot_on_the_device_asked_for() -> None:
    slots = SerialExecutor("meta").map(lambda slot, item: slot, [1, 2])
    assert slots[0] is slots[1]
    assert slots[0].device == torch.device("meta")
    assert {p.device.type for p in slots[0].model(SPEC).parameters()} == {"meta"}


def test_a_slot_keeps_one_model_of_each_kind() -> None:
    slot = Slot(torch.device("cpu"))
    model = slot.model(SPEC)
    assert slot.model(ModelSpec("convnet", (1, 12, 12), classes=3, width=4)) is model
    assert slot.model(ModelSpec("convnet", (1, 12, 12), classes=4, width=4)) is not model
    assert slot.model(SPEC) is model


def test_building_a_model_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    Slot(torch.device("cpu")).model(SPEC)
    assert torch.equal(torch.get_rng_state(), before)
