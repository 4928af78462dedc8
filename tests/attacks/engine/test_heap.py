from __future__ import annotations

import platform
import resource

import pytest
import torch

from fedveil.attacks.engine.heap import keep_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_that_was_freed_is_there_again() -> None:
    assert keep_memory()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**22)
    # Asked for and given back each time, 16 MiB would be 4,096 pages; a few times it lies elsewhere.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 10 * 4096


def test_a_user_who_has_tuned_the_library_keeps_their_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_memory.__wrapped__()
