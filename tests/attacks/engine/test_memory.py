from __future__ import annotations

import torch

from fedveil.attacks.engine.memory import Footprint, footprint


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
