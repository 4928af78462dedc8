from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from tiny import share_cache, tiny_experiment, write_bars

import fedveil
from fedveil.orchestrator.config.yaml import dump
from fedveil.orchestrator.interrupts import Interrupts, interruptible, uninterrupted
from fedveil.orchestrator.tracking import SweepTracker, TrackingSettings, TrialTracker, replay
from fedveil.orchestrator.tracking.operations import Operation
from fedveil.orchestrator.tracking.spool import Journal

ROOT = Path(fedveil.__file__).parents[1]
UNTIL_STOPPED = {"fl": {"rounds": 5000}, "audit": {"rounds": [0]}}
TWICE = """
import time
from fedveil.orchestrator.interrupts import Interrupts

with Interrupts(command=True):
    try:
        print("here", flush=True)
        time.sleep(300)
    finally:
        print("cleaning up", flush=True)
        time.sleep(300)
"""


@contextmanager
def started(arguments: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A Python that Ctrl-C reaches, whatever this one was started with."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def read_until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if words in line:
            return said
    raise AssertionError(f"ended before {words!r}:\n{said}")


def stopped(command: str, raw: dict[str, Any], folder: Path, number: signal.Signals) -> tuple[int, str]:
    """Send the signal amid the training and return the exit code and what is said from then on."""
    (folder / "e.yaml").write_text(dump(raw))
    with started(["-m", "fedveil.orchestrator", command, "e.yaml"], folder) as process:
        read_until(process, "/5000")
        process.send_signal(number)
        said, _ = process.communicate()
        return process.returncode, said


def recorded(folder: Path) -> dict[str, tuple[str, str, str]]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'tiny'")
    return {
        str(run.info.run_name): (run.info.status, run.data.tags.get("stopped_by", ""), run.data.tags.get("error", ""))
        for run in client.search_runs([experiment.experiment_id])
    }


@pytest.mark.slow
def test_an_interrupted_sweep_closes_its_runs_begins_no_search_and_says_how_to_go_on(
    tmp_path: Path, modules: Path
) -> None:
    search = {
        "panel": [{"defense": "none"}, {"defense": {"name": "pixel_noise", "strength": 0.3}}],
        "space": {"fl.learning_rate": {"loguniform": [0.01, 0.1]}},
        "samples": 2,
        "searcher": "random",
    }
    raw = tiny_experiment(write_bars(share_cache(tmp_path, modules) / "bars.npz"), **UNTIL_STOPPED, search=search)
    code, said = stopped("sweep", raw, tmp_path, signal.SIGINT)
    assert code == 130, said
    assert said.splitlines()[-1] == ("fedveil: interrupted; go on with: python -m orchestrator sweep e.yaml --resume")
    assert "Traceback" not in said
    closed = ("KILLED", "interrupt", "")
    assert recorded(tmp_path) == {"tiny": closed, "none": closed, "pixel_noise_strength=0.3": closed}
    assert not [path for path in (tmp_path / "runs/tiny/spool").iterdir() if path.is_dir()]


@pytest.mark.slow
def test_a_terminated_run_is_killed_in_the_record(tmp_path: Path, modules: Path) -> None:
    raw = tiny_experiment(write_bars(share_cache(tmp_path, modules) / "bars.npz"), **UNTIL_STOPPED)
    code, said = stopped("run", raw, tmp_path, signal.SIGTERM)
    assert code == 143, said
    assert said.splitlines()[-1] == "fedveil: terminated; go on with: python -m orchestrator run e.yaml --resume"
    assert "Traceback" not in said
    assert recorded(tmp_path) == {"none-seed0": ("KILLED", "interrupt", "")}


def test_a_second_signal_ends_a_command_at_once(tmp_path: Path) -> None:
    with started(["-c", TWICE], tmp_path) as process:
        read_until(process, "here")
        process.send_signal(signal.SIGINT)
        read_until(process, "cleaning up")
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130


def send(number: signal.Signals) -> None:
    """Send it to this process, and have it handled: handlers run between two steps of Python."""
    os.kill(os.getpid(), number)
    for _ in range(1000):
        threading.Event().wait(0.001)


def test_from_python_an_interrupt_is_one_and_sigterm_leaves_as_an_exit() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), interruptible():
        send(signal.SIGINT)
    with pytest.raises(SystemExit, match="143"), interruptible():
        send(signal.SIGTERM)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert Interrupts.current is None


def test_a_signal_waits_for_what_must_not_be_interrupted() -> None:
    done = []

    def work() -> None:
        with uninterrupted(), uninterrupted():
            send(signal.SIGINT)
            done.append("first")
        done.append("second")

    with pytest.raises(KeyboardInterrupt), interruptible() as interrupts:
        work()
    assert done == ["first"]
    assert interrupts.number == signal.SIGINT


def test_the_server_has_a_second_for_each_answer_after_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    seen = []

    def work() -> None:
        try:
            send(signal.SIGINT)
        finally:
            seen.append(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])

    with pytest.raises(KeyboardInterrupt), interruptible():
        work()
    assert [*seen, os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]] == ["1", "5"]


@pytest.mark.parametrize(
    ("line", "known"),
    [(1, False), (2, False), (3, True)],
    ids=["opened", "before any server knows of it", "once a server knows of it"],
)
def test_a_run_and_a_sweep_that_are_interrupted_while_they_are_made_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: int, known: bool
) -> None:
    settings = TrackingSettings(experiment="tiny", uri=f"sqlite:///{tmp_path / 'mlflow.db'}", spool=tmp_path / "spool")
    append, before = Journal.append, []

    def interrupted(journal: Journal, operation: Operation) -> None:
        append(journal, operation)
        if len([*journal.read()]) == line:
            if known:
                assert replay(settings.spool_folder).waiting == 0
                before.append(recorded(tmp_path))
            send(signal.SIGINT)

    def make_run() -> None:
        TrialTracker(settings, parent_run_id=None, name="run", params={"seed": 3}, swept=["seed"])

    def make_sweep() -> None:
        SweepTracker(settings, name="sweep")

    killed = ("KILLED", "interrupt", "")
    monkeypatch.setattr(Journal, "append", interrupted)
    for make in (make_run, make_sweep):
        with pytest.raises(KeyboardInterrupt), interruptible():
            make()
    assert replay(settings.spool_folder).waiting == 0
    assert recorded(tmp_path) == {"run": killed, "sweep": killed}
    running = ("RUNNING", "", "")
    assert before == ([{"run": running}, {"run": killed, "sweep": running}] if known else [])
    assert not [path for path in (tmp_path / "spool").iterdir() if path.is_dir()]
