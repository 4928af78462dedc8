"""Building modules from an explicit random stream, although PyTorch's initialisers draw from the global one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def seeded(build: Callable[[], Module], stream: torch.Generator) -> Module:
    """Return ``build()`` with initial weights that depend on ``stream`` alone; the global generator is left as it was."""
    seed = int(torch.randint(2**62, (1,), generator=stream))
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed the accelerators too, which the fork does not put back.
        torch.default_generator.manual_seed(seed)
        return build()
