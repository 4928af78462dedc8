from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer
from resuming import numbers, stumbling_experiment, sweep
from tiny import share_cache, tiny_experiment, write_bars

from benchmarks.faults.servers import mute
from fedveil.fl.errors import FedveilError
from fedveil.orchestrator.report.recorded import rows_from_mlflow
from fedveil.orchestrator.run import mirror as module
from fedveil.orchestrator.run import place as place_module
from fedveil.orchestrator.run.api import run
from fedveil.orchestrator.run.mirror import STALE, Mirror, mirrored
from fedveil.orchestrator.run.place import Place


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


@pytest.fixture
def place(store: str) -> Place:
    return Place(store)


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


def test_of_a_record_that_was_delivered_nothing_stays_there(here: Path, place: Place) -> None:
    """Its pictures show people. It waits when a process ends, and the next delivers it before it sends anything."""
    write(here / "spool/run/files/1/image.png", "5")
    Mirror(here, place).send()
    again = Mirror(here, place)
    again.fetch()
    shutil.rmtree(here / "spool/run")
    again.send()
    assert place.times().keys() == {"a.txt", "trials/none/record.json"}


def test_what_is_left_of_a_record_that_was_delivered_is_not_fetched(here: Path, place: Place, tmp_path: Path) -> None:
    write(here / "spool/gone/files/1/image.png", "5")
    Mirror(here, place).send()
    later = Mirror(tmp_path / "later", place, resume=False)
    later.fetch("spool")
    assert files(tmp_path / "later") == {"spool/run/journal.jsonl": "2"}
    later.send()
    assert place.times().keys() == {"a.txt", "spool/run/journal.jsonl", "trials/none/record.json"}


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


class Moody:
    """Lets a place take files or not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refuses: Callable[[str], bool] = lambda name: False
        write = Place.write

        def moody(place: Place, name: str, content: bytes) -> None:
            if self.refuses(name):
                raise OSError("not today")
            write(place, name, content)

        monkeypatch.setattr(Place, "write", moody)


@pytest.fixture
def moody(monkeypatch: pytest.MonkeyPatch) -> Moody:
    return Moody(monkeypatch)


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_cannot_be_sent_holds_up_only_what_refers_to_it(here: Path, place: Place, moody: Moody) -> None:
    write(here / "sweep.json", "x")
    moody.refuses = lambda name: name == "a.txt"
    ours = Mirror(here, place)
    with pytest.raises(OSError, match="not today"):
        ours.send()
    assert set(place.times()) == {"spool/run/journal.jsonl", "trials/none/record.json"}
    moody.refuses = lambda name: False
    ours.send()
    assert {"a.txt", "sweep.json"} <= place.times().keys()


def test_a_place_that_is_gone_is_no_file_that_is_gone(here: Path, place: Place, moody: Moody) -> None:
    def vanished(name: str) -> bool:
        raise FileNotFoundError(name)

    moody.refuses = vanished
    with pytest.raises(FileNotFoundError):
        Mirror(here, place).send()


def test_trouble_is_said_once_and_what_waited_is_sent_later(here: Path, place: Place, moody: Moody) -> None:
    said: list[str] = []
    with mirrored(here, place.address, said.append, every=0.01):
        moody.refuses = lambda name: name == "b.txt"
        write(here / "b.txt", "22")
        until(lambda: said)
        moody.refuses = lambda name: False
        until(lambda: len(said) == 2)
    assert "does not take the runs, and is tried again: not today" in said[0]
    assert "takes the runs again" in said[1]
    assert len(said) == 2
    assert place.read("b.txt") == b"22"


def test_who_leaves_the_latest_behind_is_told_and_fails(
    here: Path, place: Place, moody: Moody, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AGAIN", (0.0,))
    said: list[str] = []

    def leave() -> None:
        with mirrored(here, place.address, said.append):
            moody.refuses = lambda name: name == "b.txt"
            write(here / "b.txt", "22")

    with pytest.raises(FedveilError, match=r"lacks the latest of the results: they are in .* alone"):
        leave()
    assert "lacks the latest" in said[-1]


def test_an_outage_at_the_end_is_waited_for(
    here: Path, place: Place, moody: Moody, monkeypatch: pytest.MonkeyPatch
) -> None:
    def back(pause: float) -> None:
        moody.refuses = lambda name: False

    monkeypatch.setattr(module.time, "sleep", back)
    with mirrored(here, place.address, print):
        moody.refuses = lambda name: name == "b.txt"
        write(here / "b.txt", "22")
    assert place.read("b.txt") == b"22"


def test_what_another_machine_has_sent_is_not_replaced_by_what_lay_here(
    here: Path, place: Place, tmp_path: Path
) -> None:
    write(tmp_path / "other/a.txt", "finished")
    Mirror(tmp_path / "other", place).send()
    with mirrored(here, place.address, print):
        write(here / "new.txt", "6")
    assert place.read("a.txt") == b"finished"
    assert place.read("new.txt") == b"6"


def test_who_was_taken_for_dead_sends_nothing_more(
    here: Path, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Mirror(here, place), Mirror(tmp_path / "other/e", place)
    first.claim()
    monkeypatch.setattr(module, "STALE", -1.0)
    second.claim()
    for act in (first.sign, first.send):  # a new sign would be one of two
        with pytest.raises(FedveilError, match="another process has taken over"):
            act()
    assert [name.startswith("running-") for name in place.times()] == [True]


def test_who_resumes_waits_for_a_dead_process(
    here: Path, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Mirror(tmp_path / "other/e", place).claim()
    monkeypatch.setattr(module, "STALE", 3.0)
    said: list[str] = []
    Mirror(here, place).claim(patience=60, say=said.append)
    assert "another process has written" in said[0]
    assert len(said) == 1


def test_ones_own_sending_is_not_fetched_over_what_came_after_it(here: Path, place: Place) -> None:
    Mirror(here, place).send()
    write(here / "a.txt", "later")
    os.utime(here / "a.txt", (1e9, 1e9))  # a place's clock may be ahead
    Mirror(here, place).fetch()
    assert (here / "a.txt").read_text() == "later"


def test_names_that_lead_elsewhere_are_left(place: Place, tmp_path: Path, store: str) -> None:
    host = store.partition("endpoint_override=")[2]
    bucket = store.removeprefix("s3://").partition("/")[0]
    client = boto3.client("s3", endpoint_url=f"http://{host}")
    for name in ("runs/../x", "runs/trials/../../y", "runs/spool/z"):
        client.put_object(Bucket=bucket, Key=name, Body=b"7")
    Mirror(tmp_path / "new", place).fetch()
    assert files(tmp_path / "new") == {"spool/z": "7"}


@pytest.mark.parametrize("login", ["KEY:sEc/ReT@", "KEY:sE@c@"])
def test_no_secret_of_an_address_is_said(login: str, here: Path) -> None:
    address = f"s3://{login}hospital/runs?scheme=http&endpoint_override=127.0.0.1:9&region=x"
    with pytest.raises(FedveilError) as refusal, mirrored(here, address, print):
        pytest.fail("it has to be refused")
    assert "sE" not in str(refusal.value)


def test_a_place_that_never_answers_is_asked_for_one_file_only(
    here: Path, place: Place, moody: Moody, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(module, "LONG", -1.0)
    moody.refuses = lambda name: not asked.append(name)  # type: ignore[func-returns-value]
    with pytest.raises(OSError, match="not today"):
        Mirror(here, place).send()
    assert asked == ["a.txt"]


def test_an_object_store_that_accepts_and_never_answers_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place_module, "ANSWER", 1.0)
    with (
        mute() as port,
        pytest.raises(FedveilError, match="Less than 1 bytes/sec transferred the last 1 seconds"),
        mirrored(here, f"s3://k:s@hospital/runs?scheme=http&endpoint_override=127.0.0.1:{port}&region=x", print),
    ):
        pytest.fail("it has to be refused")


def test_a_place_that_does_not_answer_is_refused_before_anything_runs(here: Path) -> None:
    address = "s3://hospital/runs?scheme=http&endpoint_override=127.0.0.1:9&region=x"
    with pytest.raises(FedveilError, match=r"runs_dir: s3://hospital/runs.*"), mirrored(here, address, print):
        pytest.fail("it has to be refused")


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_a_sweep_goes_on_elsewhere_from_an_object_store_to_the_same_numbers(
    store: str,
    tmp_path: Path,
    modules: Path,
    undisturbed: dict[str, dict[str, float]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = stumbling_experiment(tmp_path, tracking={"uri": f"sqlite:///{tmp_path / 'mlflow.db'}"})
    one_node, other_node = (share_cache(tmp_path / name, modules) for name in ("one", "other"))
    monkeypatch.setenv("FEDVEIL_RUNS", store)
    (one_node / "stone").touch()
    before, _ = sweep(raw, one_node, monkeypatch)
    assert [row.status for row in before.rows] == ["FAILED", "FAILED"]
    shutil.rmtree(one_node)
    after, said = sweep(raw, other_node, monkeypatch, resume=True)
    assert numbers(after) == undisturbed
    assert "damaged" not in said
    recorded = rows_from_mlflow(f"sqlite:///{tmp_path / 'mlflow.db'}", "tiny")
    assert {row.name: row.status for row in recorded} == dict.fromkeys(numbers(after), "FINISHED")
    assert len(recorded) == 2
    assert {"tiny/sweep.json", "tiny/pareto.png"} <= Place(store).times().keys()


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_runs_of_two_machines_lie_side_by_side(
    store: str, tmp_path: Path, modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tiny_experiment(write_bars(tmp_path / "bars.npz"), fl={"rounds": 1}, audit={"rounds": [0]})
    raw |= {"runs_dir": store, "tracking": {"uri": f"sqlite:///{tmp_path / 'mlflow.db'}"}}
    for folder in (tmp_path / "one", tmp_path / "other"):
        monkeypatch.chdir(share_cache(folder, modules))
        run(raw)
    folders = {Path(name).parts[2] for name in Place(store).times("tiny/trials")}
    assert folders == {"none-seed0", "none-seed0-2"}
