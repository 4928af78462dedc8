"""How much memory there is, and the refusal of what would not go into it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedveil.fl.errors import FedveilError

GIB = 2**30


def free_memory() -> int | None:
    """Return the bytes that new processes may take (the container's limit counts), or None where that can't be told."""
    free = [left for left in (_available(), *map(_left_in_group, _GROUPS)) if left is not None]
    return min(free, default=None)


def check_room(needed: float, what: str) -> None:
    """Refuse what would take more memory than is free.

    Args:
        needed: bytes, at least.
        what: takes them, as the beginning of a sentence.

    Raises:
        FedveilError: they are not there.
    """
    free = free_memory()
    if free is not None and needed > free:
        raise FedveilError(f"{what} takes {needed / GIB:,.1f} GiB of memory or more; free are {free / GIB:,.1f} GiB")


@dataclass(frozen=True)
class _Group:
    """Where a version of control groups says what is allowed and used, and how it calls cached files that nobody needs.

    The system counts them as used, and gives them up before it refuses an allocation.
    """

    limit: Path
    used: Path
    parts: Path
    cached: str


_SECOND, _FIRST = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")
_GROUPS: tuple[_Group, ...] = (
    _Group(_SECOND / "memory.max", _SECOND / "memory.current", _SECOND / "memory.stat", "inactive_file"),
    _Group(
        _FIRST / "memory.limit_in_bytes",
        _FIRST / "memory.usage_in_bytes",
        _FIRST / "memory.stat",
        "total_inactive_file",
    ),
)
"""The second and the first version."""


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _left_in_group(group: _Group) -> int | None:
    try:
        limit, used = (int(file.read_text(encoding="ascii")) for file in (group.limit, group.used))
    except (OSError, ValueError):
        return None  # no such group, or no limit
    return max(0, limit - max(0, used - _cached(group)))


def _cached(group: _Group) -> int:
    try:
        lines = [line.split() for line in group.parts.read_text(encoding="ascii").splitlines()]
    except OSError:
        return 0
    return next((int(line[1]) for line in lines if line[:1] == [group.cached]), 0)
