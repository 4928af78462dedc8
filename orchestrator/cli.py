"""The command line: ``fedveil init|run|sweep|report|list|data|schema|completion|doctor|ui``.

Exit codes: 0 all went well; 1 a trial, or a check of the doctor's, failed; 2 something that the user can mend, said in
one line per mistake; 130 and 143 Ctrl-C and SIGTERM, after the open runs were closed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console

from fedveil.fl.errors import FedveilError, FedveilWarning, TrialError
from fedveil.orchestrator import commands
from fedveil.orchestrator.cluster.connection import offline_environment
from fedveil.orchestrator.completion import SHELLS
from fedveil.orchestrator.interrupts import Interrupts

KINDS = ("gradient", "delta", "weights")
"""What a file may hold: the mean gradient, the weights' change, or the weights after training."""
LISTED = ("defenses", "attacks", "model_inversions", "models", "data", "strategies", "optimizers", "partitions")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    offline_environment()
    arguments = parser().parse_args(argv)
    console = Console()
    with Interrupts(command=argv is None) as interrupts:
        try:
            with _warnings_as_lines():
                code: int = arguments.run(arguments, console)
                sys.stdout.flush()
        except BrokenPipeError:  # whoever read the output has had enough; what is left of it goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (KeyboardInterrupt, Exception) as error:
            if isinstance(error, KeyboardInterrupt) or interrupts.number is not None:
                print(f"fedveil: {_stopped(interrupts, arguments, argv)}", file=sys.stderr)
                return interrupts.code
            if not isinstance(error, FedveilError):
                raise
            for line in str(error).splitlines():
                print(f"fedveil: {line}", file=sys.stderr)
            return 1 if isinstance(error, TrialError) else 2
    return code


def _stopped(interrupts: Interrupts, arguments: argparse.Namespace, argv: Sequence[str] | None) -> str:
    """Say that a signal ended the command, and how to go on where it was an experiment."""
    from fedveil.orchestrator.tracking.settings import without_passwords

    said = "terminated" if interrupts.number == signal.SIGTERM else "interrupted"
    if arguments.run not in (commands.run_one, commands.run_sweep):
        return said
    program = "python -m orchestrator" if Path(sys.argv[0]).name == "__main__.py" else "fedveil"
    words = list(sys.argv[1:] if argv is None else argv)
    if interrupts.resumable and not arguments.resume:
        words.append("--resume")
    how = "go on" if interrupts.resumable or arguments.resume else "start anew"
    return f"{said}; {how} with: {program} {without_passwords(shlex.join(words))}"


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Print our warnings like errors, a line each, once each."""
    said: set[str] = set()
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if not issubclass(category, FedveilWarning):
                usual(message, category, filename, lineno, file, line)
            elif str(message) not in said:
                said.add(str(message))
                print(f"fedveil: {message}", file=sys.stderr)

        warnings.simplefilter("always", FedveilWarning)
        warnings.showwarning = show
        yield


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line; what it reads has the command's function as ``run``."""
    parser = argparse.ArgumentParser(
        prog="fedveil",
        description="Measure what federated clients' updates leak of their images, and learn what stops it.",
    )
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")

    first = verbs.add_parser("init", help="write a commented experiment file that runs in a few minutes")
    first.add_argument(
        "--data", default="mni152", metavar="NAME", help="npz:FILE, folder:FOLDER, or of: fedveil data list"
    )
    first.add_argument(
        "file", type=Path, nargs="?", default=Path("first.yaml"), metavar="FILE", help="default first.yaml"
    )
    first.set_defaults(run=commands.init)

    one = verbs.add_parser("run", help="run one trial")
    _add_experiment(one)
    one.add_argument("--resume", action="store_true", help="go on with the interrupted run of that name")
    one.set_defaults(run=commands.run_one)

    many = verbs.add_parser("sweep", help="run the sweep that a file's 'search' section describes")
    _add_experiment(many)
    many.add_argument("--resume", action="store_true", help="go on with the interrupted sweep of that name")
    many.set_defaults(run=commands.run_sweep)

    report = verbs.add_parser("report", help="show an experiment's trials as recorded in MLflow")
    report.add_argument("experiment")
    report.add_argument("--uri", help="MLflow tracking URI; default MLFLOW_TRACKING_URI, else sqlite:///mlflow.db")
    report.add_argument("--json", type=Path, metavar="FILE", help="write the trials to FILE as well")
    report.add_argument("--html", type=Path, metavar="FILE", help="write a page to hand on to FILE as well")
    _add_plugins(report)
    report.set_defaults(run=commands.report)

    listing = verbs.add_parser("list", help="show what has a name in experiment files, with its settings")
    listing.add_argument("kind", choices=LISTED, nargs="?", metavar="KIND", help=", ".join(LISTED))
    listing.add_argument(
        "name", nargs="?", metavar="NAME", help="one of them, with each setting, its default and paper"
    )
    _add_plugins(listing)
    listing.set_defaults(run=commands.list_names)

    data = verbs.add_parser("data", help="list data sets, or download one")
    actions = data.add_subparsers(required=True, metavar="ACTION")
    here = actions.add_parser("list", help="what there is, and what is here already (data get says where)")
    _add_plugins(here)
    here.set_defaults(run=commands.list_data)
    get = actions.add_parser("get", help="find a data set in the search folders, or download it into data/cache")
    get.add_argument("name")
    get.add_argument("--size", type=int, help="pixels per side, where the data set has several sizes")
    _add_plugins(get)
    get.set_defaults(run=commands.get_data)

    schema = verbs.add_parser("schema", help="print the JSON schema of experiment files, for editors")
    _add_plugins(schema)
    schema.set_defaults(run=commands.schema)

    completion = verbs.add_parser("completion", help="print what makes a shell complete commands, options and names")
    completion.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    _add_plugins(completion)
    completion.set_defaults(run=commands.complete)

    doctor = verbs.add_parser(
        "doctor", help="check this machine (versions, devices, data, MLflow, Ray, disk), or what an update gives away"
    )
    doctor.add_argument("--uri", help="as for report")
    _add_update(doctor)
    doctor.set_defaults(run=commands.check)

    ui = verbs.add_parser("ui", help="open the MLflow user interface on the local record")
    ui.add_argument("--uri", help="as for report")
    ui.add_argument("--port", type=int, default=5000)
    ui.add_argument("--no-browser", action="store_false", dest="browser", help="print the links, open no browser")
    ui.set_defaults(run=commands.show)
    return parser


def _add_experiment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="experiment file (YAML)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key, for example fl.rounds=5",
    )
    parser.add_argument(
        "--runs-dir",
        metavar="PLACE",
        help="folder for results and checkpoints, or an address for a copy of them, s3://BUCKET/FOLDER for example; default"
        " runs_dir in FILE, else FEDVEIL_RUNS, else runs",
    )
    _add_plugins(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write parameters and metrics to FILE as well")
    parser.add_argument("--ray", metavar="ADDRESS", help="Ray cluster; default RAY_ADDRESS, else one of its own here")


def _add_update(parser: argparse.ArgumentParser) -> None:
    of = parser.add_argument_group(
        "of an update", "why an inversion is likely to fail or to succeed, without attacking"
    )
    of.add_argument(
        "--update", type=Path, metavar="FILE", help="what a client sent: .npz, or .pt as torch.save writes it"
    )
    of.add_argument("--model", metavar="MODULE:NAME", help="nn.Module, or what makes one; ./net.py:Net works too")
    of.add_argument("--weights", type=Path, metavar="FILE", help="that the server sent; default as the model is made")
    of.add_argument("--kind", choices=KINDS, help="of the update; default by its looks")
    of.add_argument("--learning-rate", type=float, metavar="RATE", help="the client's, of delta and weights")
    of.add_argument("--local-steps", type=int, metavar="N", help="the client's, of delta and weights; default 1")
    of.add_argument("--batch-size", type=int, metavar="N", help="images behind the update; default 1")
    of.add_argument("--image-shape", metavar="CxHxW", help="3x32x32 for example; default a usual one that fits")
    of.add_argument("--mode", choices=("train", "eval"), help="how BatchNorm and dropout ran; default train")


def _add_plugins(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="MODULE",
        help="import a module or a Python file of yours first, for example ./my_attack.py",
    )
