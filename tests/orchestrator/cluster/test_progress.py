from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from rich.console import Console

from fedveil.orchestrator.cluster import progress


class Board:
    """The mailbox without Ray; what it holds may be an error."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.killed = False
        self.posted: list[tuple[str, str]] = []
        self.take = SimpleNamespace(remote=lambda: self.answers.pop(0) if self.answers else [])
        self.post = SimpleNamespace(remote=lambda who, text: self.posted.append((who, text)))


def fake_ray(board: Board) -> Any:
    def get(answer: Any, timeout: float) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(actor: Board) -> None:
        actor.killed = True

    make = SimpleNamespace(remote=lambda *given: board)
    return SimpleNamespace(remote=lambda **options: lambda cls: make, get=get, kill=kill, exceptions=ray.exceptions)


def shown_by(board: Board, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(progress, "ray", fake_ray(board))
    console = Console(width=40, record=True)
    with progress.progress_on(console, name="small", every=0.001):
        while len(board.answers) > 1:
            time.sleep(0.001)
    return console.export_text()


def test_progress_outlives_a_busy_moment_and_shows_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(ray.exceptions.GetTimeoutError("busy"), [("t[0]", "round [/1] of [bold]")], [("t", "done")])
    text = shown_by(board, monkeypatch)
    assert "t[0]  round [/1] of [bold]" in text
    assert "t  done" in text
    assert board.killed


def failing_block(board: Board, last: Any, console: Console) -> None:
    with progress.progress_on(console, name="small", every=60):
        board.answers = [last]
        raise ValueError("the trial")


def test_the_last_lines_are_shown_when_a_block_ends_by_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    board, console = Board(), Console(width=80, record=True)
    monkeypatch.setattr(progress, "ray", fake_ray(board))
    with pytest.raises(ValueError, match="the trial"):
        failing_block(board, [("t", "last words")], console)
    assert "last words" in console.export_text()
    assert board.killed


def test_a_lost_board_does_not_hide_what_ended_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board()
    monkeypatch.setattr(progress, "ray", fake_ray(board))
    with pytest.raises(ValueError, match="the trial"):
        failing_block(board, ray.exceptions.RayError("gone"), Console())
    assert board.killed


def test_a_speaker_posts_under_its_name_or_keeps_quiet() -> None:
    board = Board()
    progress.Speaker(board, "t")("hello")
    progress.Speaker(None, "t")("hello")
    assert board.posted == [("t", "hello")]


def test_the_mailbox_is_emptied_by_looking() -> None:
    board = progress._Board()
    board.post("a", "one")
    board.post("b", "two")
    assert board.take() == [("a", "one"), ("b", "two")]
    assert board.take() == []


def test_what_holds_of_all_trials_is_noted_once() -> None:
    board = progress._Board()
    for who, text in (
        ("a", "note: dark"),
        ("b", "note: dark"),
        ("b", "round 1"),
        ("a", "round 1"),
        ("b", "note: bright"),
    ):
        board.post(who, text)
    assert board.take() == [("a", "note: dark"), ("b", "round 1"), ("a", "round 1"), ("b", "note: bright")]
    board.post("a", "note: dark")
    assert board.take() == [("a", "note: dark")]


def timed(trials: int, at_once: int, events: list[tuple[float, str, str]]) -> list[str]:
    """What the board says of the time that is left, where trials begin and end at these seconds."""
    now = [0.0]
    board = progress._Board("small", trials, at_once, lambda: now[0])
    for seconds, what, who in events:
        now[0] = seconds
        if what == "begins":
            board.begin(who)
        else:
            board.end(who)
    return [line for who, line in board.take() if who == "sweep"]


def test_after_each_trial_but_the_last_it_is_said_how_long_the_others_take() -> None:
    one_after_the_other = [
        (50.0, "begins", "a"),
        (70.0, "ends", "a"),
        (71.0, "begins", "b"),
        (111.0, "ends", "b"),
        (112.0, "begins", "c"),
        (120.0, "ends", "c"),
    ]
    # 20 s for one of three; then 30 s on average.
    assert timed(3, 1, one_after_the_other) == [
        "1 of 3 trials are over, about 40 s left",
        "2 of 3 trials are over, about 30 s left",
    ]


def test_trials_that_run_have_part_of_their_time_behind_them() -> None:
    side_by_side = [
        (0.0, "begins", "a"),
        (0.0, "begins", "b"),
        (60.0, "ends", "a"),
        (60.0, "begins", "c"),
        (80.0, "ends", "b"),
        (100.0, "begins", "d"),
        (110.0, "ends", "d"),
    ]
    # b has had its 60 s, so that two begin at once and one after them; c has 50 s before it, and beside it two of 70 s begin
    # one after the other; c has none of the usual 50 s left, and one begins at once.
    assert timed(5, 2, side_by_side) == [
        "1 of 5 trials are over, about 2 min left",
        "2 of 5 trials are over, about 2 min left",
        "3 of 5 trials are over, about 50 s left",
    ]


def test_of_one_that_is_slower_than_the_others_nobody_knows() -> None:
    events = [(0.0, "begins", "a"), (0.0, "begins", "b"), (30.0, "ends", "a"), (80.0, "ends", "b")]
    assert timed(2, 2, events) == ["1 of 2 trials are over, the last take longer than those before"]


def test_of_an_unknown_number_of_trials_none_are_counted() -> None:
    assert timed(0, 1, [(0.0, "begins", "a"), (9.0, "ends", "a")]) == []


def test_a_window_has_lines_broken_between_words_and_a_log_has_them_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    line = [
        ("latent_k=5", "the attacker prepares with 171 images, see /a/very/long/path/that/nobody/must/break/in/two")
    ]
    text = {}
    for terminal in (True, False):
        board = Board(line, [])
        monkeypatch.setattr(progress, "ray", fake_ray(board))
        console = Console(width=44, record=True, force_terminal=terminal)
        with progress.progress_on(console, name="small", every=0.001):
            while len(board.answers) > 1:
                time.sleep(0.001)
        text[terminal] = console.export_text()
    assert text[False] == f"     0 s  latent_k=5  {line[0][1]}\n"
    first, *rest = text[True].splitlines()
    assert first == "     0 s  latent_k=5  the attacker prepares"
    assert all(one.startswith(" " * 10) and not one[10:].startswith(" ") for one in rest)
    assert rest[-1].strip() == "/a/very/long/path/that/nobody/must/break/in/two"


@pytest.mark.parametrize(("patience", "times"), [(30.0, 1), (0.0, 4)])
def test_a_slow_start_is_explained_now_and_then(monkeypatch: pytest.MonkeyPatch, patience: float, times: int) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setattr(progress, "_PATIENCE", patience)
    text = shown_by(Board([], [], [], [("t", "begins")], []), monkeypatch)
    assert text.count("small  processes start, and each") == times
    assert text.index("processes start") < text.index("begins")


def test_what_looks_like_markup_in_a_line_is_text() -> None:
    console = Console(width=40, record=True)
    progress.plainly(console)("note: /data/[red]x[/red]/[/] takes nothing")
    assert console.export_text() == "note: /data/[red]x[/red]/[/] takes nothing\n"
