"""Freed memory stays with the process, so that the next step of an attack finds it there.

A step allocates and frees the same tensors again and again. glibc asks the system for each large one anew and gives it back
at once, and what is free at the heap's end likewise; the system clears every page of it. Peak memory is the same, but what a
step has used stays the process's own until it ends.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = -3, -1, -2
"""Numbers of glibc's options, from its <malloc.h>."""
_LARGEST = 2**30
"""Bytes of the largest allocation that comes from the heap; before 2.35 glibc allowed 32 MiB at most."""
_KEPT = 2**31 - 1
"""Bytes at the heap's end that are kept when they are free, the most that the option holds."""
_AHEAD = 64 * 2**20
"""Bytes that the heap grows by beyond what is needed."""


@cache
def keep_memory() -> bool:
    """Have the C library keep what is freed; returns whether it does.

    The rest is left alone where the library is another than glibc, or the user has tuned it by `MALLOC_...` or
    ``GLIBC_TUNABLES``.
    """
    if any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - others have a mallopt that does something else, or nothing
        option = library.mallopt
    except (AttributeError, OSError, TypeError):
        return False
    large = option(_MMAP_THRESHOLD, _LARGEST) or option(_MMAP_THRESHOLD, 2**25)
    return bool(large and option(_TRIM_THRESHOLD, _KEPT) and option(_TOP_PAD, _AHEAD))
