"""Independent random streams that are a pure function of (seed, purpose, round, client, ...).

Nothing in fedveil depends on the state of a global generator: a lost worker's chunk can be replayed, on another process
or machine, and gives the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(seed: int, *path: str | int) -> int:
    """Return a 63-bit seed for the stream that ``path`` names below ``seed``.

    >>> derive_seed(0, "round", 1, "client", 2) == derive_seed(0, "round", 1, "client", 2)
    True
    >>> derive_seed(0, "round", 1) == derive_seed(0, "round", 2)
    False
    """
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in path)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def torch_stream(seed: int, *path: str | int) -> torch.Generator:
    """Return a CPU ``torch.Generator`` for the stream ``path``; draw on the CPU and move, so that devices agree."""
    return torch.Generator().manual_seed(derive_seed(seed, *path))


@contextmanager
def seeded_globals(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Within, the global generators of the CPU and of ``device`` are seeded; afterwards they are as they were.

    For what draws from no other generator: initial weights and dropout.
    """
    cuda = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        # torch.manual_seed would reseed all accelerators, which the fork does not put back.
        torch.default_generator.manual_seed(seed)
        for own in cuda:
            with torch.cuda.device(own):
                torch.cuda.manual_seed(seed)
        yield


def numpy_stream(seed: int, *path: str | int) -> np.random.Generator:
    """Return a NumPy ``Generator`` for the stream ``path``."""
    return np.random.default_rng(derive_seed(seed, *path))
