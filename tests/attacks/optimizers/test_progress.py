from __future__ import annotations

import logging

import pytest
from clock import Clock

from fedveil.attacks.optimizers.progress import begin, evaluated, progress


def test_a_slow_attack_says_how_far_it_is(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with progress("slow", victims=96, steps=300):
        begin(64)
        clock.now += 9
        evaluated(50)
        assert not caplog.messages
        clock.now += 11
        evaluated(100)
        clock.now += 4
        evaluated(50)
        begin(32)
        clock.now += 8
        evaluated(150)
    # 20 s for 64 victims' half: a third of all, so 40 s are left. Then 32 s for 80 of 96.
    assert caplog.messages == [
        "slow: 0 of 96 victims done, step 150 of 300 for the next 64, about 40 s left",
        "slow: 64 of 96 victims done, step 150 of 300 for the next 32, about 6 s left",
    ]


def test_a_fast_attack_says_nothing(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with progress("fast", victims=1, steps=100):
        begin(1)
        clock.now += 5
        evaluated(100)
    clock.now += 50
    # Outside of an attack nobody is listening.
    begin(1)
    evaluated(50)
    assert not caplog.messages
