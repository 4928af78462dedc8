"""Moving a shared module to the device that a worker computes on, once per worker and not once per batch."""

from __future__ import annotations

import copy
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)
_COPIES: WeakKeyDictionary[nn.Module, dict[torch.device, nn.Module]] = WeakKeyDictionary()


def on_device(module: Module, device: torch.device) -> Module:
    """Return ``module`` itself if it lives on ``device`` already, otherwise a copy there that is kept as long as it."""
    if next(module.parameters()).device == device:
        return module
    copies = _COPIES.setdefault(module, {})
    if device not in copies:
        copies[device] = copy.deepcopy(module).to(device)
    there = copies[device]
    if not isinstance(there, type(module)):
        raise TypeError(f"expected {type(module).__name__}, got {type(there).__name__}")
    return there
