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
    files = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(memory, "_GROUPS", [files])
    monkeypatch.setattr(memory, "_available", lambda: 5000)
    assert free_memory(CPU) == 5000
    files[0].write_text("max")
    files[1].write_text("100")
    assert free_memory(CPU) == 5000
    files[0].write_text("400")
    assert free_memory(CPU) == 300
    files[1].write_text("500")
    assert free_memory(CPU) == 0
    monkeypatch.setattr(memory, "_GROUPS", [])
    monkeypatch.setattr(memory, "_available", lambda: None)
    assert free_memory(CPU) is None
