from __future__ import annotations

import logging

import pytest
from clock import Clock

from fedveil.fl.progress import Pace, doing, duration, paced


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


def test_steps_say_how_far_they_are(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for step in paced(4, "learning"):
        clock.now += 6
        assert step < 4
    # Lines after 12 s of 24 and after 24 s, when nothing is left to say.
    assert caplog.messages == ["learning: step 2 of 4, about 12 s left"]


def test_what_may_end_earlier_says_so(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    pace = Pace()
    clock.now += 20
    pace.say(0.1, "step 1 of at most 10", most=True)
    assert caplog.messages == ["step 1 of at most 10, about 3 min left if it goes to its end"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99.4, "99 s"), (100, "2 min"), (5999, "100 min"), (6000, "1.7 h"), (86_400, "24.0 h")],
)
def test_a_length_of_time_is_told_as_precisely_as_matters(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_of_a_first_slow_step_nothing_is_concluded(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    pace = Pace()
    clock.now += 22
    pace.say(1 / 802, "step 1 of 10")
    clock.now += 11
    pace.say(0.25, "step 9 of 10")
    assert caplog.messages == ["step 1 of 10", "step 9 of 10, about 99 s left"]
