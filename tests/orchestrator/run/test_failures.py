from __future__ import annotations

import errno
import stat
from pathlib import Path

import pytest
from mlflow import MlflowClient
from ray.exceptions import RayActorError
from tiny import share_cache, tiny_experiment, write_bars

from fedveil.fl.errors import FedveilError, TrialError
from fedveil.orchestrator import cli
from fedveil.orchestrator.config.yaml import dump
from fedveil.orchestrator.run import api
from fedveil.orchestrator.run.failures import DIED, LOG, logged, sentence_of

FAULTY = '''
import os
import signal
from dataclasses import dataclass

import fedveil as fv
from fedveil.fl.strategies import FedAvg


@fv.register_defense("faulty")
@dataclass(frozen=True, kw_only=True)
class Faulty(fv.Defense):
    def data(self, x, y, stream):
        raise RuntimeError("the plug-in stumbled\\nover http://me:secret@host")


@fv.register_strategy("deadly")
@dataclass(frozen=True)
class Deadly(FedAvg):
    """Kills the trial's own process, which aggregates."""

    def step(self, weights, state, totals, updates):
        os.kill(os.getpid(), signal.SIGKILL)
'''


def fail(error: Exception) -> None:
    raise error


def test_an_unforeseen_error_is_a_sentence_and_its_traceback_is_in_a_file_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "trial"
    with pytest.raises(TrialError) as caught, logged(folder):
        fail(ValueError("two\nlines http://me:secret@host " + 1000 * "x"))
    said, log = str(caught.value), folder / LOG
    assert said.startswith("ValueError: two lines http://host xxx")
    assert said.endswith(f"(traceback: {log})")
    assert len(said) < 400 + len(str(log))
    text = log.read_text()
    assert text.startswith("Traceback (most recent call last):")
    assert f'"{__file__}"' in text
    assert "secret" not in text
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_full_disk_is_said_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TrialError) as caught, logged(tmp_path / "trial"):
        fail(OSError(errno.ENOSPC, "No space left on device"))
    assert str(caught.value).startswith(f"no space is left for files ({tmp_path / 'trial'} and temporary ones): ")
    assert "free some, and go on with --resume (traceback: " in str(caught.value)


def test_what_the_user_can_mend_stays_as_it_is_and_takes_an_older_traceback_away(tmp_path: Path) -> None:
    (tmp_path / LOG).write_text("of another attempt")
    mine = FedveilError("lower the learning rate")
    with pytest.raises(FedveilError) as caught, logged(tmp_path):
        fail(mine)
    assert caught.value is mine
    assert not (tmp_path / LOG).exists()


def test_where_the_traceback_cannot_be_written_the_sentence_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "there"

    def work() -> None:
        folder.touch()
        raise ValueError("odd")

    said = r"ValueError: odd \(the traceback cannot be written to .*there/error.log: Not a directory\)"
    with pytest.raises(TrialError, match=said), logged(folder):
        work()


def test_a_dead_process_is_called_one_and_rays_account_is_kept(tmp_path: Path) -> None:
    error = RayActorError(error_msg="The actor died, at length.")
    assert sentence_of(error, tmp_path) == f"{DIED} (Ray's account: {tmp_path / LOG})"
    assert "The actor died, at length." in (tmp_path / LOG).read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_faulty_plug_in_and_a_dead_process_fail_their_trials_by_a_sentence(
    tmp_path: Path, modules: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(share_cache(tmp_path, modules))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "faulty.py").write_text(FAULTY)
    raw = tiny_experiment(
        write_bars(tmp_path / "bars.npz"), fl={"rounds": 1}, audit={"rounds": [0]}, plugins=["./faulty.py"]
    )
    panel = [{"defense": "faulty"}, {"defense": "none", "fl.strategy": "deadly"}]
    rows = {row.name: row for row in api.sweep({**raw, "search": {"panel": panel}}).rows}
    trials = tmp_path / "runs/tiny/trials"
    expected = {
        "faulty": f"RuntimeError: the plug-in stumbled over http://host (traceback: {trials / 'faulty' / LOG})",
        "none_strategy=deadly": f"{DIED} (Ray's account: {trials / 'none_strategy=deadly' / LOG})",
    }
    assert {name: (row.status, row.error) for name, row in rows.items()} == {
        name: ("FAILED", said) for name, said in expected.items()
    }
    assert "Traceback" not in capfd.readouterr().err
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'tiny'")
    recorded = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {name: run.info.status for name, run in recorded.items()} == {
        "tiny": "FINISHED",
        **dict.fromkeys(expected, "FAILED"),
    }
    assert recorded["faulty"].data.tags["error"] == "RuntimeError: the plug-in stumbled over http://host"
    assert recorded["none_strategy=deadly"].data.tags["error"] == expected["none_strategy=deadly"]

    (tmp_path / "e.yaml").write_text(dump({**raw, "defense": "faulty"}))
    capfd.readouterr()
    assert cli.main(["run", "e.yaml"]) == 1
    log = trials / "faulty-seed0" / LOG
    said = f"RuntimeError: the plug-in stumbled over http://host (traceback: {log})"
    assert capfd.readouterr().err.strip().splitlines()[-1] == f"fedveil: {said}"
    assert "faulty.py" in log.read_text()
