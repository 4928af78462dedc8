from __future__ import annotations

import logging

import pytest
from clock import Clock

from fedveil.fl.progress import Pace, doing


def test_a_line_tells_what_is_left_and_the_next_one_waits(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    pace = Pace()
    for seconds, done in ((9, 1), (11, 2), (19, 3), (22, 6), (40, 8)):
        clock.now = 100 + seconds
        pace.say(done / 8, f"{done} of 8")
    # After 11 s a quarter is done, so 33 s are left; after 22 s three quarters. The end needs no line.
    assert caplog.messages == ["2 of 8, about 33 s left", "6 of 8, about 7 s left"]


def test_a_line_says_what_it_is_for(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    pace = Pace()
    clock.now += 20
    with doing("client 3"):
        with doing("rehearsal 1 of 4"):
            pace.say(0.5, "half")
        clock.now += 20
        pace.say(0.8, "more")
    clock.now += 20
    pace.say(0.9, "most")
    assert caplog.messages == [
        "client 3: rehearsal 1 of 4: half, about 20 s left",
        "client 3: more, about 10 s left",
        "most, about 7 s left",
    ]
