from __future__ import annotations

import gc
import weakref

import torch
from torch import nn

from fedveil.defense.devices import _COPIES, on_device

CPU, OTHER = torch.device("cpu"), torch.device("meta")


def test_a_module_that_is_there_already_is_returned_itself() -> None:
    module = nn.Linear(2, 2)
    assert on_device(module, CPU) is module
    assert module not in _COPIES


def test_a_module_is_copied_once_per_device_and_stays_where_it_was() -> None:
    module = nn.Linear(2, 2)
    copied = on_device(module, OTHER)
    assert copied is not module
    assert copied.weight.device == OTHER
    assert on_device(module, OTHER) is copied
    assert module.weight.device == CPU


def test_modules_do_not_share_copies() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 3)
    assert on_device(first, OTHER) is not on_device(second, OTHER)
    assert on_device(second, OTHER).out_features == 3


def test_the_copy_lives_no_longer_than_the_module() -> None:
    module = nn.Linear(2, 2)
    copied = weakref.ref(on_device(module, OTHER))
    assert copied() is not None
    del module
    gc.collect()
    assert copied() is None
