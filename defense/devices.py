"""Moving a shared module to the device that a worker computes on, once per worker and not once per batch."""

from __future__ import annotations

import copy
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)
_TWINS: WeakKeyDictionary[nn.Module, dict[torch.device, nn.Module]] = WeakKeyDictionary()


def on_device(module: Module, device: torch.device) -> Module:
    """Return ``module`` itself if it lives on ``device`` already, otherwise a copy there that is kept as long as it."""
    if next(module.parameters()).device == device:
        return module
    twins = _TWINS.setdefault(module, {})
    if device not in twins:
        twins[device] = copy.deepcopy(module).to(device)
    twin = twins[device]
    if not isinstance(twin, type(module)):
        raise TypeError(f"expected {type(module).__name__}, got {type(twin).__name__}")
    return twin
