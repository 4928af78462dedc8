"""The programs that the speed and memory benchmarks time."""

from __future__ import annotations

import pytest

from benchmarks.memory import attacked
from benchmarks.our_speed import floor, loop, step
from benchmarks.peers.cells import Network
from benchmarks.peers.serving import Request, measure
from benchmarks.speed import ratios

TINY = Request("step", Network("convnet", width=4), 3)


@pytest.mark.parametrize("program", [step, loop, floor])
def test_programs_count_victim_steps(program):
    go = program(TINY)
    assert go(5) - go(2) == 3 * 3


def test_a_request_survives_its_line():
    assert Request.parsed(TINY.line()) == TINY


def test_a_measurement_is_of_at_least_one_step():
    taken = []

    def program(steps):
        taken.append(steps)
        return steps

    measure(program, 0.0, "cpu")
    assert taken == [1, 1]


def test_ratios_are_taken_round_by_round():
    assert ratios([2.0, 9.0, 8.0], [1.0, 3.0, 2.0]) == {"median": 3.0, "least": 2.0, "most": 4.0}


def test_memory_is_measured_around_an_attack():
    found = attacked({"name": "inverting_gradients", "steps": 1}, "group", 2)
    assert found["attack"].startswith("InvertingGradients(steps=1")
    assert 0 < found["before_gib"] <= found["peak_gib"]
