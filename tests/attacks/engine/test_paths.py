from __future__ import annotations

import gc
import logging
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from fedveil.attacks.engine import paths
from fedveil.attacks.engine.fixed import Fixed
from fedveil.attacks.engine.tracing import traced
from fedveil.fl.errors import FedveilError

X = torch.tensor([1.0, 2.0])


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the trials are timed by: it stands still unless a test moves it."""
    now = [0.0]
    monkeypatch.setattr(paths, "perf_counter", lambda: now[0])
    return now


class Counted:
    """A function that counts how often it is worked out."""

    def __init__(self, *, reads: bool = False) -> None:
        self.runs, self.reads = 0, reads

    def __call__(self, x: Tensor) -> list[Tensor]:
        self.runs += 1
        return [x * float(x[0]) if self.reads else x * 2, x + 1]


def runs(way: str, monkeypatch: pytest.MonkeyPatch, function: Counted, times: int = 8) -> list[int]:
    """How often the function had been worked out after each call; results are checked."""
    monkeypatch.setenv(paths.VARIABLE, way)
    owner, counts = nn.Identity(), []
    for number in range(times):
        x = X + number
        for found, expected in zip(
            paths.run(owner, "name", function, [x]), Counted(reads=function.reads)(x), strict=True
        ):
            assert torch.equal(found, expected)
        counts.append(function.runs)
    return counts


def test_a_function_is_recorded_once_it_has_run_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    # The third run is the last: its operations are recorded in a fourth.
    assert runs("auto", monkeypatch, Counted()) == [1, 2, 4, 4, 4, 4, 4, 4]
    assert runs("traced", monkeypatch, Counted()) == [2] * 8
    assert runs("eager", monkeypatch, Counted()) == [*range(1, 9)]


def test_a_function_without_a_record_goes_on_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "fedveil.attacks.engine.paths"):
        assert runs("auto", monkeypatch, Counted(reads=True)) == [1, 2, 4, 5, 6, 7, 8, 9]
    assert "goes on untraced: Untraceable" in caplog.text


def test_a_record_that_gives_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(x: Tensor) -> list[Tensor]:
        return [x * 2.01, x + 1]

    monkeypatch.setattr(paths, "traced", lambda _, inputs: traced(wrong, inputs))
    with caplog.at_level(logging.DEBUG, "fedveil.attacks.engine.paths"):
        assert runs("traced", monkeypatch, Counted()) == [*range(1, 9)]
    assert "give something else" in caplog.text


@pytest.mark.parametrize(
    ("way", "seconds", "off", "kept"),
    [
        ("auto", 0.9, 0.0, True),
        ("auto", 1.1, 0.0, False),
        # Results that are not the same to the last bit must not hang on times; nor do those of a path that was pinned.
        ("auto", 1.1, 1e-6, True),
        ("traced", 1.1, 0.0, True),
    ],
)
def test_the_faster_path_is_kept(
    way: str, seconds: float, off: float, kept: bool, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    worked_out, from_list = [0], [0]

    def function(x: Tensor) -> list[Tensor]:
        worked_out[0] += 1
        clock[0] += 1.0
        return [x * 2]

    class Recorded:
        def __init__(self, *_: object) -> None: ...

        def __call__(self, inputs: Sequence[Tensor], _: Fixed) -> list[Tensor]:
            from_list[0] += 1
            # One of the timed runs was disturbed, as happens.
            clock[0] += seconds + 5 * (from_list[0] == 3)
            return [inputs[0] * 2 + off]

    monkeypatch.setattr(paths, "traced", lambda *_: None)
    monkeypatch.setattr(paths, "Halves", Recorded)
    monkeypatch.setenv(paths.VARIABLE, way)
    owner = nn.Identity()
    for _ in range(20):
        (found,) = paths.run(owner, "name", function, [X])
        torch.testing.assert_close(found, X * 2, atol=2 * off, rtol=0)
    before = paths.TRACED_AFTER + 1 if way == "auto" else 1
    # The check runs the list once more.
    assert (worked_out[0], from_list[0]) == ((before, 21 - before) if kept else (20 - paths.TRIAL, 1 + paths.TRIAL))


def test_names_shapes_and_types_have_paths_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paths.VARIABLE, "traced")
    owner = nn.Identity()
    for name, x in (("a", X), ("a", X.double()), ("a", torch.ones(2, 2)), ("b", X), ("a", torch.ones(4)[::2])):
        function = Counted()
        first, _ = paths.run(owner, name, function, [x])
        assert function.runs == 2
        assert torch.equal(first, 2 * x)


def test_paths_go_with_their_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    owner, before = nn.Identity(), len(paths._PATHS)
    paths.run(owner, "name", Counted(), [X])
    assert len(paths._PATHS) == before + 1
    del owner
    gc.collect()
    assert len(paths._PATHS) <= before


def test_the_number_of_paths_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "KEPT", 3)
    owner = nn.Identity()
    for length in range(1, 9):
        paths.run(owner, "name", Counted(), [torch.ones(length)])
    assert len(paths._PATHS[owner]) == 3


def test_a_way_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paths.VARIABLE, "quick")
    with pytest.raises(FedveilError, match="FEDVEIL_ENGINE: 'quick' is not allowed; allowed: auto, eager, traced"):
        paths.run(nn.Identity(), "name", Counted(), [X])


def test_a_record_reads_what_is_fixed_of_those_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paths.VARIABLE, "traced")
    owner = nn.Identity()

    def scaled(x: Tensor, factor: Tensor) -> list[Tensor]:
        return [x * factor.square().sum()]

    for fixed in (Fixed([X]), Fixed([3 * X])):
        for number in range(3):
            (found,) = paths.run(owner, "name", scaled, [X + number], fixed)
            assert torch.equal(found, (X + number) * fixed.tensors[0].square().sum())
