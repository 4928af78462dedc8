from __future__ import annotations

from pathlib import Path

import pytest

from fedveil.fl import memory
from fedveil.fl.errors import FedveilError
from fedveil.fl.memory import check_room, free_memory


def test_free_memory_is_within_the_containers_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, used, parts = (tmp_path / name for name in ("max", "current", "stat"))
    monkeypatch.setattr(memory, "_GROUPS", [memory._Group(limit, used, parts, "inactive_file")])
    monkeypatch.setattr(memory, "_available", lambda: 5000)
    assert free_memory() == 5000
    limit.write_text("max\n")
    used.write_text("100\n")
    assert free_memory() == 5000
    limit.write_text("400\n")
    assert free_memory() == 300
    used.write_text("500\n")
    assert free_memory() == 0
    monkeypatch.setattr(memory, "_GROUPS", [])
    monkeypatch.setattr(memory, "_available", lambda: None)
    assert free_memory() is None


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
    assert free_memory() == 400 - (380 - 250)
    used.write_text("200\n")  # read at another moment than the parts
    assert free_memory() == 400
    parts.write_text("anon 120\n")
    assert free_memory() == 200


def test_each_version_of_control_groups_names_its_own_files() -> None:
    second, first = memory._GROUPS
    assert (second.parts, second.cached) == (Path("/sys/fs/cgroup/memory.stat"), "inactive_file")
    assert (first.parts, first.cached) == (Path("/sys/fs/cgroup/memory/memory.stat"), "total_inactive_file")


def test_what_does_not_go_into_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 3 * 2**30)
    check_room(3 * 2**30, "it")
    with pytest.raises(FedveilError, match=r"^it takes 3\.1 GiB of memory or more; free are 3\.0 GiB$"):
        check_room(3.1 * 2**30, "it")
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    check_room(1e30, "it")


def test_this_machine_has_some() -> None:
    free = free_memory()
    assert free is None or 0 < free < 1e15
