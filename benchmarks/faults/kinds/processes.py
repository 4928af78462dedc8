"""Processes that are killed, interrupted and terminated."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from benchmarks.faults.commands import TRIAL, Command
from benchmarks.faults.experiment import NAME, ROUNDS
from benchmarks.faults.stage import Stage, fault


@fault("worker-round", "a worker killed in a round", "run")
def worker_in_a_round(stage: Stage) -> None:
    """It is replaced, and its share of the round replayed."""
    command = stage.start("run")
    # A line says that a round is over; after the last but one an audit follows.
    stage.when(command, f"round {stage.chance.randint(1, ROUNDS - 2)}/", within=0.05)
    os.kill(command.any_worker(), signal.SIGKILL)
    stage.finish(command)


@fault("worker-audit", "a worker killed in an audit", "run")
def worker_in_an_audit(stage: Stage) -> None:
    """It is replaced, and its share of the victims attacked anew."""
    command = stage.start("run")
    # The first one takes seconds; the last is over before a line says that it has begun.
    stage.when(command, "audit of round 0", within=3)
    os.kill(command.any_worker(), signal.SIGKILL)
    stage.finish(command)


@fault("worker-start", "a worker killed while it starts", "run")
def worker_that_starts(stage: Stage) -> None:
    """Another is started."""
    command = stage.start("run")
    pid = command.any_worker()
    stage.strike(moment="the start")
    os.kill(pid, signal.SIGKILL)
    stage.finish(command)


@fault("trial", "a trial's process killed, the sweep resumed", "sweep")
def trial_process(stage: Stage) -> None:
    """The trial is called failed with a sentence, the others end, and the sweep is resumed."""
    command = stage.start("sweep")
    command.until("recorded in")
    command.any_worker(TRIAL)
    stage.anywhen(command)
    trials = command.workers(TRIAL)
    if trials:
        os.kill(stage.chance.choice(sorted(trials)), signal.SIGKILL)
    stage.finish(command, 0, 1)
    stage.finish(stage.start("sweep", "--resume"))


def _signalled(stage: Stage, command: Command, number: signal.Signals) -> None:
    """Send a signal at any moment; one that comes when the last trial is done may come too late to change the end."""
    stage.anywhen(command)
    command.send(number)
    stage.finish(command, 128 + number, *([0] if stage.moment == "after a trial" else []))


def _begun_anew(stage: Stage) -> None:
    if (stage.runs / NAME / "trials" / "none-seed0").exists():
        stage.given_up["none-seed0"] = "none-seed0-2"
    stage.finish(stage.start("run"))


@fault("run-killed", "a run killed, begun anew", "run")
def run_killed(stage: Stage) -> None:
    """The next run says of the dead one that it is dead."""
    stage.kill_anywhen(stage.start("run"))
    _begun_anew(stage)


@fault("run-resumed", "a run killed, resumed", "run")
def run_resumed(stage: Stage) -> None:
    """It goes on from its last checkpoint, in the same records."""
    stage.kill_anywhen(stage.start("run"))
    if (stage.runs / NAME / "run.json").exists():
        stage.finish(stage.start("run", "--resume"))
    else:
        _begun_anew(stage)


@fault("run-ctrl-c", "Ctrl-C on a run, begun anew", "run")
def run_interrupted(stage: Stage) -> None:
    """It is closed as killed."""
    command = stage.start("run")
    _signalled(stage, command, signal.SIGINT)
    _begun_anew(stage)


def resumed(stage: Stage, *, before: Sequence[str] = ()) -> None:
    """Resume the sweep, or start it anew where it had not come to what can be resumed."""
    stage.finish(_resuming(stage, before))


def _resuming(stage: Stage, before: Sequence[str] = ()) -> Command:
    how = ["--resume"] if (stage.runs / NAME / "sweep.json").exists() else []
    return stage.start("sweep", *how, before=before)


@fault("sweep-killed", "a sweep killed, resumed at once", "sweep")
def sweep_killed(stage: Stage) -> None:
    """What Ray has left of it may still be dying."""
    stage.kill_anywhen(stage.start("sweep"))
    resumed(stage)


@fault("sweep-ctrl-c", "Ctrl-C on a sweep, resumed", "sweep")
def sweep_interrupted(stage: Stage) -> None:
    """It closes its runs first."""
    command = stage.start("sweep")
    _signalled(stage, command, signal.SIGINT)
    resumed(stage)


@fault("sweep-sigterm", "SIGTERM on a sweep, resumed", "sweep")
def sweep_terminated(stage: Stage) -> None:
    """As a cluster's scheduler sends it."""
    command = stage.start("sweep")
    _signalled(stage, command, signal.SIGTERM)
    resumed(stage)


@fault("sweep-twice", "a sweep killed twice, resumed twice", "sweep")
def sweep_killed_twice(stage: Stage) -> None:
    """The second time while it resumes."""
    stage.kill_anywhen(stage.start("sweep"))
    stage.kill_anywhen(_resuming(stage))
    resumed(stage)
