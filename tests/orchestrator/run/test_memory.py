from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from ray import cloudpickle
from ray.tune.experiment import Trial

from fedveil.fl.errors import FedveilError
from fedveil.orchestrator.run.memory import Memory, RunMemory, runs, sweeps, whole_states
from fedveil.orchestrator.run.paths import ExperimentPaths

OLD = Memory("run", "20260101-000000-aaaaaa", {"seed": 1, "fl": {"rounds": 3}})
NEW = Memory("run", "20260102-000000-000000", {"seed": 1, "fl": {"rounds": 4}})


def damages(text: str) -> list[str]:
    flipped = text.replace('"rounds": 4', '"rounds": 5')
    assert flipped != text
    return [flipped, text[:-20], "", "{}", "null", "[]", json.dumps({**json.loads(text), "more": 1})]


def test_a_damaged_memory_is_taken_from_its_copy_and_never_believed(tmp_path: Path) -> None:
    book = sweeps(ExperimentPaths(tmp_path / "e"))
    for memory in (OLD, NEW):
        book.keep(memory)
        assert book.recall() == memory
    text = book.file.read_text()
    for damaged in damages(text):
        book.file.write_text(damaged)
        assert book.recall() == NEW
    copy = book.storages / NEW.tune / "sweep.json"
    assert copy.read_text() == text
    copy.write_text(text[:-20])
    with pytest.raises(FedveilError, match=r"sweep.json is damaged and so is its copy .* start anew without --resume"):
        book.recall()
    book.file.unlink()
    with pytest.raises(FedveilError, match="there is nothing to resume"):
        book.recall()


def test_a_run_is_remembered_beside_the_sweeps_of_its_name(tmp_path: Path) -> None:
    paths = ExperimentPaths(tmp_path / "e")
    sweeps(paths).keep(NEW)
    run = RunMemory("20260103-000000-000000", {"seed": 2}, ["none-seed2-3"])
    runs(paths).keep(run)
    assert (sweeps(paths).recall(), runs(paths).recall()) == (NEW, run)
    runs(paths).file.write_text(sweeps(paths).file.read_text())
    assert runs(paths).recall() == run


def write_state(file: Path, trials: int = 1, written: float | None = None, *, cut: int = 0) -> str:
    """Write what Tune writes of a part with so many trials, of which it cuts the ends."""
    state, seen = Trial("trainable", stub=True).get_json_state()
    file.write_text(json.dumps({"trial_data": [[state[: len(state) - cut], seen]] * trials}))
    if written is not None:
        os.utime(file, (written, written))
    return file.name


def test_a_damaged_state_of_a_part_is_set_aside_for_an_older_one(tmp_path: Path) -> None:
    said: list[str] = []
    assert not whole_states(tmp_path, said.append)
    first, second = (tmp_path / f"experiment_state-2026-01-0{day}_00-00-00.json" for day in (1, 2))
    write_state(first)
    second.write_text('{"trial_da')
    assert whole_states(tmp_path, said.append)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"damaged-{second.name}", first.name]
    write_state(first, cut=5)  # JSON still
    assert not whole_states(tmp_path, said.append)
    assert [str(second) in said[0], str(first) in said[1], len(said)] == [True, True, 2]


def test_a_state_without_trials_is_none(tmp_path: Path) -> None:
    write_state(tmp_path / "experiment_state-2026-01-01_00-00-00.json", trials=0)
    assert not whole_states(tmp_path, print)


def test_a_damaged_state_of_the_searcher_is_said_and_the_part_begins_anew(tmp_path: Path) -> None:
    said: list[str] = []
    state = write_state(tmp_path / "experiment_state-2026-01-01_00-00-00.json")
    searcher = tmp_path / "searcher-state-2026-01-01_00-00-00.pkl"
    searcher.write_bytes(cloudpickle.dumps({"trials": 3}))
    assert whole_states(tmp_path, said.append)
    searcher.write_bytes(searcher.read_bytes()[:-3])
    assert not whole_states(tmp_path, said.append)
    assert [str(searcher) in line for line in said] == [True]
    assert {path.name for path in tmp_path.iterdir()} == {f"earlier-{state}", f"damaged-{searcher.name}"}


def test_the_last_written_state_counts_whatever_clock_named_it(tmp_path: Path) -> None:
    """One machine may be in Tokyo, and the next one in London."""
    for name, written in (("2026-11-30_03-15-51", 1e9), ("2026-11-29_18-20-00", 2e9), ("2026-11-29_18-10-00", 1.5e9)):
        write_state(tmp_path / f"experiment_state-{name}.json", written=written)
    assert whole_states(tmp_path, print)
    assert [path.name for path in tmp_path.glob("experiment_state-*")] == ["experiment_state-2026-11-29_18-20-00.json"]
    assert len(list(tmp_path.glob("earlier-*"))) == 2


def test_where_nothing_is_to_be_resumed_both_places_are_named_without_their_secrets(tmp_path: Path) -> None:
    with pytest.raises(FedveilError, match=r"no .*sweep\.json, and nothing at s3://hospital/runs; start"):
        sweeps(ExperimentPaths(tmp_path, "s3://key:secret@hospital/runs")).recall()
