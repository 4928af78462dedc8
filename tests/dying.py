"""A run without Ray whose process is killed at a moment of its trial: ``python -m dying '{...}'``, see `main`."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console

from fedveil.fl.executor import SerialExecutor
from fedveil.orchestrator.config import check
from fedveil.orchestrator.run import setting, single
from fedveil.orchestrator.run.callbacks import Phase, TrialCallback
from fedveil.orchestrator.run.results import RunResult
from fedveil.orchestrator.run.setup import check_setups
from fedveil.orchestrator.run.trial import Trial


class _Dying(TrialCallback):
    """Ends the process as a lost machine does, when a phase begins.

    Args:
        phase: name of a `Phase`.
        number: of its round.
    """

    def __init__(self, phase: str, number: int) -> None:
        self._moment = (Phase[phase], number)

    def on_begin(self, phase: Phase, number: int) -> None:
        if (phase, number) == self._moment:
            os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def without_ray() -> Iterator[None]:
    """Let runs have this process for their worker."""
    with (
        patch.object(single, "check_fit", lambda *arguments, **options: None),
        patch.object(single, "RayExecutor", lambda *arguments, **options: nullcontext(SerialExecutor())),
        patch.object(single, "progress_on", lambda console, name: nullcontext()),
        patch.object(setting, "Speaker", lambda board, name: lambda line: None),
    ):
        yield


def run(raw: dict[str, Any], *, resume: bool = False) -> tuple[RunResult, str]:
    """Run, and return what was printed as well."""
    screen = io.StringIO()
    experiment = check(raw)
    with without_ray():
        result = single.run_single(
            experiment, check_setups(experiment, raw), Console(file=screen, width=500), resume=resume
        )
    return result, screen.getvalue()


def killed(raw: dict[str, Any], folder: Path, phase: str, number: int, *, resume: bool = False) -> None:
    """Run in another process, in a folder, until it is killed when this phase of this round begins."""
    asked = json.dumps({"raw": raw, "phase": phase, "number": number, "resume": resume})
    ended = subprocess.run([sys.executable, "-m", "dying", asked], cwd=folder, env=_environment(), check=False)
    assert ended.returncode == -signal.SIGKILL


def _environment() -> dict[str, str]:
    here = Path(__file__).parent
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)])}


def main(asked: str) -> None:
    """Do what `killed` asks for."""
    wanted = json.loads(asked)
    dying = _Dying(wanted["phase"], wanted["number"])

    class Mortal(Trial):
        def __init__(self, *arguments: Any, callbacks: Any, **options: Any) -> None:
            super().__init__(*arguments, callbacks=[*callbacks, dying], **options)

    with patch.object(setting, "Trial", Mortal):
        run(wanted["raw"], resume=wanted["resume"])


if __name__ == "__main__":
    main(sys.argv[1])
