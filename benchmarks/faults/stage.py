"""Where a fault is caused: a folder of its own, the moment that chance gives it, and a clock that it starts."""

from __future__ import annotations

import random
import signal
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults.commands import Command, end
from benchmarks.faults.experiment import NAME, experiment
from fedveil.orchestrator.config.yaml import dump

FILE = "experiment.yaml"
REPORT = "report.json"
_TRACEBACK = 2000
"""Characters of one that are kept."""


@dataclass
class Stage:
    """One try of a fault.

    Attributes:
        folder: empty at first.
        chance: for whatever is random.
        share: when to strike, as a share of an undisturbed run's time; spread evenly over tries.
        seconds: that an undisturbed run works, without its start.
        undisturbed: how a run or sweep without a fault looks.
        uri: of the MLflow record, as it is read at the end.
        environment: of the commands.
        given_up: see `outcome.facts_of`.
        experiments: names of those whose outcome counts.
        moment: what went on when the fault came.
        troubles: what was seen beside losses: an exit code, a traceback.
    """

    folder: Path
    chance: random.Random
    share: float
    seconds: float
    uri: str = ""
    runs: Path = Path()
    environment: dict[str, str] = field(default_factory=dict)
    given_up: dict[str, str] = field(default_factory=dict)
    experiments: list[str] = field(default_factory=lambda: [NAME])
    moment: str = ""
    troubles: list[str] = field(default_factory=list)
    began: float | None = None
    _commands: list[Command] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.uri = self.uri or f"sqlite:///{self.folder / 'mlflow.db'}"
        self.runs = self.folder / "runs"

    def start(
        self,
        command: str,
        *options: str,
        settings: Mapping[str, Any] | None = None,
        before: Sequence[str] = (),
        folder: Path | None = None,
    ) -> Command:
        """Start ``run`` or ``sweep``.

        Args:
            command: which.
            options: of its command line.
            settings: in place of the experiment's own.
            before: see `Command`.
            folder: in place of the stage's.
        """
        place = folder or self.folder
        place.mkdir(exist_ok=True)
        raw = {**experiment(command), **(settings or {})}
        file = f"{raw['experiment']}-{FILE}"
        (place / file).write_text(dump(raw))
        words = [command, file, "--json", f"{raw['experiment']}-{REPORT}", *options]
        environment = {"MLFLOW_TRACKING_URI": self.uri, **self.environment}
        self._commands.append(Command(words, place, uuid.uuid4().hex, environment, before))
        return self._commands[-1]

    def anywhen(self, command: Command) -> None:
        """Wait until the time that chance has given this try, from the moment on at which the command begins to work."""
        command.until("recorded in")
        time.sleep(self.share * self.seconds)
        self.strike(command)

    def when(self, command: Command, words: str, within: float = 0.3) -> None:
        """Wait until the command says this, and for up to so many seconds more."""
        command.until(words)
        time.sleep(self.chance.uniform(0, within))
        self.strike(command)

    def strike(self, command: Command | None = None, moment: str = "") -> None:
        """Note that the fault comes now."""
        self.moment = moment or (command.phase if command is not None else "")
        self.began = time.monotonic()

    def finish(self, command: Command, *codes: int) -> None:
        """Wait for its end, which should be one of these exit codes (0)."""
        code = command.wait()
        if code not in (codes or (0,)):
            self.troubles.append(f"exit code {code}: {command.lines[-1] if command.lines else ''}")
        _, found, traceback = command.said.partition("Traceback")
        if found:
            self.troubles.append(f"a traceback{traceback[-_TRACEBACK:]}")

    def kill_anywhen(self, command: Command) -> None:
        """End the command by SIGKILL at the moment that chance has given this try."""
        self.anywhen(command)
        command.send(signal.SIGKILL)
        command.wait()

    def close(self) -> None:
        """End what runs still, also what killed commands have left behind."""
        for command in self._commands:
            end(command.mark)


Cause = Callable[[Stage], None]


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        name: short.
        title: for the page.
        command: ``run`` or ``sweep``, whose undisturbed outcome is the measure.
        cause: starts what is disturbed, disturbs it, resumes it where that is needed, and waits for the end.
    """

    name: str
    title: str
    command: str
    cause: Cause


FAULTS: dict[str, Fault] = {}


def fault(name: str, title: str, command: str) -> Callable[[Cause], Cause]:
    """Register a kind of fault; see `Fault`."""

    def register(cause: Cause) -> Cause:
        FAULTS[name] = Fault(name, title, command, cause)
        return cause

    return register
