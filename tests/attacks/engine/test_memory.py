from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedveil.attacks.engine import memory
from fedveil.attacks.engine.memory import Footprint, footprint, free_memory

CPU = torch.device("cpu")


def test_what_lives_at_once_counts_by_hand() -> None:
    x = torch.ones(1000)

    def compute() -> None:
        first = x + 1  # 4,000 bytes
        second = torch.cat([first, first])  # 8,000 more
        view = second[10:].view(-1)  # none
        del first
        view.add_(1)  # none
        _ = view.double()  # 15,920 more; 23,920 live

    assert footprint(compute) == Footprint(largest=1990 * 8, peak=8000 + 1990 * 8)


def test_what_was_there_before_does_not_count() -> None:
    x = torch.ones(1000)
    assert footprint(lambda: x.add_(1).view(10, 100)) == Footprint(0, 0)


def test_free_memory_is_within_the_containers_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, used, parts = (tmp_path / name for name in ("max", "current", "stat"))
    monkeypatch.setattr(memory, "_GROUPS", [memory._Group(limit, used, parts, "inactive_file")])
    monkeypatch.setattr(memory, "_available", lambda: 5000)
    assert free_memory(CPU) == 5000
    limit.write_text("max\n")
    used.write_text("100\n")
    assert free_memory(CPU) == 5000
    limit.write_text("400\n")
    assert free_memory(CPU) == 300
    used.write_text("500\n")
    assert free_memory(CPU) == 0
    monkeypatch.setattr(memory, "_GROUPS", [])
    monkeypatch.setattr(memory, "_available", lambda: None)
    assert free_memory(CPU) is None


V2 = "anon 120\nfile 260\ninactive_anon 7\ninactive_file 250\nactive_file 10\n"
V1 = "cache 260\nrss 120\ninactive_file 1\ntotal_cache 260\ntotal_inactive_file 250\ntotal_active_file 10\n"


@pytest.mark.parametrize(("cached", "stat"), [("inactive_file", V2), ("total_inactive_file", V1)])
def test_cached_files_that_nobody_needs_are_free(
    cached: str, stat: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, used, parts = (tmp_path / name for name in ("limit", "used", "memory.stat"))
    monkeypatch.setattr(memory, "_GROUPS", [memory._Group(limit, used, parts, cached)])
    monkeypatch.setattr(memory, "_available", lambda: None)
    limit.write_text("400\n")
    used.write_text("380\n")
    parts.write_text(stat)
    assert free_memory(CPU) == 400 - (380 - 250)
    used.write_text("200\n")  # read at another moment than the parts
    assert free_memory(CPU) == 400
    parts.write_text("anon 120\n")
    assert free_memory(CPU) == 200


def test_each_version_of_control_groups_names_its_own_files() -> None:
    second, first = memory._GROUPS
    assert (second.parts, second.cached) == (Path("/sys/fs/cgroup/memory.stat"), "inactive_file")
    assert (first.parts, first.cached) == (Path("/sys/fs/cgroup/memory/memory.stat"), "total_inactive_file")
