from __future__ import annotations

import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer
from resuming import STUMBLING, numbers, sweep
from tiny import tiny_experiment, write_bars

from fedveil.fl.errors import FedveilError
from fedveil.orchestrator.report.recorded import rows_from_mlflow
from fedveil.orchestrator.run import mirror as module
from fedveil.orchestrator.run.api import run
from fedveil.orchestrator.run.mirror import STALE, Mirror, Place, mirrored


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a bucket of an object store that speaks S3."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"hospital-{uuid.uuid4().hex}"  # one process has one memory of all buckets
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket=bucket)
        yield f"s3://{bucket}/runs?scheme=http&endpoint_override={host}:{port}"
    finally:
        server.stop()


@pytest.fixture(params=["folder", "object store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        return Place((tmp_path / "there").as_uri())
    return Place(request.getfixturevalue("store"))


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "e"
    write(folder / "a.txt", "1")
    write(folder / "spool/run/journal.jsonl", "2")
    write(folder / "trials/none/record.json", "3")
    return folder


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_what_was_sent_comes_back_and_what_is_gone_goes(here: Path, place: Place, tmp_path: Path) -> None:
    ours = Mirror(here, place)
    write(here / ".sweep.lock", "")
    ours.send()
    write(here / "a.txt", "11")
    write(here / "b.txt", "4")
    shutil.rmtree(here / "spool")
    ours.send()
    theirs = Mirror(tmp_path / "there again", place)
    theirs.fetch()
    assert files(tmp_path / "there again") == {"a.txt": "11", "b.txt": "4", "trials/none/record.json": "3"}


def test_nothing_is_deleted_that_this_process_has_not_had(here: Path, place: Place, tmp_path: Path) -> None:
    Mirror(here, place).send()
    write(tmp_path / "other/c.txt", "5")
    Mirror(tmp_path / "other", place).send()
    assert {"a.txt", "c.txt", "trials/none/record.json"} <= place.times().keys()


def test_only_what_is_older_here_is_fetched(here: Path, place: Place, tmp_path: Path) -> None:
    Mirror(here, place).send()
    other = tmp_path / "other"
    for name, when in (("a.txt", 2e9), ("trials/none/record.json", 1e9)):
        write(other / name, "mine")
        os.utime(other / name, (when, when))
    Mirror(other, place).fetch()
    assert files(other) == {"a.txt": "mine", "spool/run/journal.jsonl": "2", "trials/none/record.json": "3"}


def test_what_refers_to_files_is_sent_after_them(here: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sweep.json", "tune/t/experiment_state-1.json", "tune/t/z/checkpoint_000001/trial.pt"):
        write(here / name, "x")
    sent: list[str] = []
    monkeypatch.setattr(Place, "write", lambda self, name, content: sent.append(name))
    Mirror(here, place).send()
    assert sorted(sent[-2:]) == ["sweep.json", "tune/t/experiment_state-1.json"]
    assert "tune/t/z/checkpoint_000001/trial.pt" in sent


def test_one_process_at_a_time_writes_there(
    here: Path, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Mirror(here, place), Mirror(tmp_path / "other/e", place)
    first.claim()
    with pytest.raises(FedveilError, match=r"another run or sweep named 'e' writes into .* if it was killed, wait"):
        second.claim()
    first.release()
    second.claim()
    with pytest.raises(FedveilError, match="another run or sweep"):
        first.claim()
    monkeypatch.setattr(module, "STALE", -1.0)  # the second is taken for dead
    first.claim()
    assert STALE > 0
    assert [name.startswith("running-") for name in place.times()] == [True]


def test_a_fresh_folder_takes_no_name_that_is_there_and_brings_what_waits_for_mlflow(here: Path, place: Place) -> None:
    before = Mirror(here, place)
    before.send()
    before.release()
    shutil.rmtree(here)
    with mirrored(here, place.address, print):
        assert files(here) == {"spool/run/journal.jsonl": "2"}
        assert (here / "trials/none").is_dir()
        shutil.rmtree(here / "spool")  # delivered
    assert set(place.times()) == {"a.txt", "trials/none/record.json"}


def test_what_the_place_does_not_take_is_said_once_and_sent_later(here: Path, tmp_path: Path) -> None:
    place, said, again = tmp_path / "there", [], threading.Event()

    def say(line: str) -> None:
        said.append(line)
        again.set()

    with mirrored(here, place.as_uri(), say, every=0.01):
        while not (place / "a.txt").exists():
            pass
        shutil.rmtree(place)
        place.write_text("a file is in the way")
        write(here / "a.txt", "22")
        assert again.wait(30)
        again.clear()
        place.unlink()
        place.mkdir()
        write(here / "a.txt", "333")
        assert again.wait(30)
    assert "does not take the runs, and is tried again" in said[0]
    assert "takes the runs again" in said[1]
    assert len(said) == 2
    assert (place / "a.txt").read_text() == "333"


def test_a_place_that_does_not_answer_is_refused_before_anything_runs(here: Path) -> None:
    address = "s3://hospital/runs?scheme=http&endpoint_override=127.0.0.1:9&region=x"
    with pytest.raises(FedveilError, match=r"runs_dir: s3://hospital/runs.*"), mirrored(here, address, print):
        pytest.fail("it has to be refused")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_sweep_goes_on_elsewhere_from_an_object_store_to_the_same_numbers(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars = write_bars(tmp_path / "bars.npz")
    (tmp_path / "stumbling.py").write_text(STUMBLING)
    raw = tiny_experiment(
        bars,
        fl={"rounds": 3, "strategy": "stumbling"},
        audit={"rounds": [0]},
        plugins=[str(tmp_path / "stumbling.py")],
        tracking={"uri": f"sqlite:///{tmp_path / 'mlflow.db'}"},
        search={"panel": [{"defense": "none"}, {"defense": {"name": "pixel_noise", "strength": 0.3}}]},
    )
    once, one_node, other_node = (tmp_path / name for name in ("once", "one", "other"))
    for folder in (once, one_node, other_node):
        folder.mkdir()
    undisturbed, _ = sweep({**raw, "experiment": "once"}, once, monkeypatch)
    monkeypatch.setenv("FEDVEIL_RUNS", store)
    (one_node / "stone").touch()
    before, _ = sweep(raw, one_node, monkeypatch)
    assert [row.status for row in before.rows] == ["FAILED", "FAILED"]
    shutil.rmtree(one_node)
    after, said = sweep(raw, other_node, monkeypatch, resume=True)
    assert numbers(after) == numbers(undisturbed)
    assert "damaged" not in said
    recorded = rows_from_mlflow(f"sqlite:///{tmp_path / 'mlflow.db'}", "tiny")
    assert {row.name: row.status for row in recorded} == dict.fromkeys(numbers(after), "FINISHED")
    assert len(recorded) == 2
    assert {"tiny/sweep.json", "tiny/pareto.png"} <= Place(store).times().keys()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_runs_of_two_machines_lie_side_by_side(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tiny_experiment(write_bars(tmp_path / "bars.npz"), fl={"rounds": 1}, audit={"rounds": [0]})
    raw |= {"runs_dir": store, "tracking": {"uri": f"sqlite:///{tmp_path / 'mlflow.db'}"}}
    for folder in (tmp_path / "one", tmp_path / "other"):
        folder.mkdir()
        monkeypatch.chdir(folder)
        run(raw)
    folders = {Path(name).parts[2] for name in Place(store).times("tiny/trials")}
    assert folders == {"none-seed0", "none-seed0-2"}
