"""The command line: ``fedveil init|run|sweep|report|list|data|schema|doctor|ui``.

Exit codes: 0 all went well; 1 a trial, or a check of the doctor's, failed; 2 something that the user can mend, said in
one line per mistake; 130 and 143 Ctrl-C and SIGTERM, after the open runs were closed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fedveil.fl.errors import FedveilError, FedveilWarning, TrialError
from fedveil.orchestrator.cluster.connection import offline_environment
from fedveil.orchestrator.interrupts import Interrupts

if TYPE_CHECKING:
    from fedveil.orchestrator.report import TrialRow
    from fedveil.orchestrator.report.dossier import Dossier
    from fedveil.orchestrator.report.matched import Records
    from fedveil.orchestrator.run.results import RunResult

LISTED = ("defenses", "attacks", "model_inversions", "models", "data", "strategies", "optimizers", "partitions")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    offline_environment()
    arguments = _parser().parse_args(argv)
    console = Console()
    with Interrupts(command=argv is None) as interrupts:
        try:
            with _warnings_as_lines():
                code: int = arguments.run(arguments, console)
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
    if arguments.run not in (_run, _sweep):
        return said
    program = "python -m orchestrator" if Path(sys.argv[0]).name == "__main__.py" else "fedveil"
    words = list(sys.argv[1:] if argv is None else argv)
    if interrupts.resumable and not arguments.resume:
        words.append("--resume")
    how = "go on" if interrupts.resumable else "start anew"
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedveil",
        description="Measure what federated clients' updates leak of their images, and learn what stops it.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    first = commands.add_parser("init", help="write a commented experiment file that runs in a few minutes")
    first.add_argument(
        "--data", default="mni152", metavar="NAME", help="npz:FILE, folder:FOLDER, or of: fedveil data list"
    )
    first.add_argument(
        "file", type=Path, nargs="?", default=Path("first.yaml"), metavar="FILE", help="default first.yaml"
    )
    first.set_defaults(run=_init)

    one = commands.add_parser("run", help="run one trial")
    _add_experiment(one)
    one.set_defaults(run=_run)

    many = commands.add_parser("sweep", help="run the sweep that a file's 'search' section describes")
    _add_experiment(many)
    many.add_argument("--resume", action="store_true", help="go on with the interrupted sweep of that name")
    many.set_defaults(run=_sweep)

    report = commands.add_parser("report", help="show an experiment's trials as recorded in MLflow")
    report.add_argument("experiment")
    report.add_argument("--uri", help="MLflow tracking URI; default MLFLOW_TRACKING_URI, else sqlite:///mlflow.db")
    report.add_argument("--json", type=Path, metavar="FILE", help="write the trials to FILE as well")
    report.add_argument("--html", type=Path, metavar="FILE", help="write a page to hand on to FILE as well")
    _add_plugins(report)
    report.set_defaults(run=_report)

    listing = commands.add_parser("list", help="show what has a name in experiment files, with its settings")
    listing.add_argument("kind", choices=LISTED, metavar="KIND", help=", ".join(LISTED))
    listing.add_argument(
        "name", nargs="?", metavar="NAME", help="one of them, with each setting, its default and paper"
    )
    _add_plugins(listing)
    listing.set_defaults(run=_list)

    data = commands.add_parser("data", help="list data sets, or download one")
    actions = data.add_subparsers(required=True, metavar="ACTION")
    here = actions.add_parser("list", help="what there is, and what is here already (data get says where)")
    _add_plugins(here)
    here.set_defaults(run=_data_list)
    get = actions.add_parser("get", help="find a data set in the search folders, or download it into data/cache")
    get.add_argument("name")
    get.add_argument("--size", type=int, help="pixels per side, where the data set has several sizes")
    _add_plugins(get)
    get.set_defaults(run=_data_get)

    schema = commands.add_parser("schema", help="print the JSON schema of experiment files, for editors")
    _add_plugins(schema)
    schema.set_defaults(run=_schema)

    doctor = commands.add_parser("doctor", help="check this machine: versions, devices, data, MLflow, Ray, disk")
    doctor.add_argument("--uri", help="as for report")
    doctor.set_defaults(run=_doctor)

    ui = commands.add_parser("ui", help="open the MLflow user interface on the local record")
    ui.add_argument("--uri", help="as for report")
    ui.add_argument("--port", type=int, default=5000)
    ui.add_argument("--no-browser", action="store_false", dest="browser", help="print the links, open no browser")
    ui.set_defaults(run=_ui)
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


def _add_plugins(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="MODULE",
        help="import a module or a Python file of yours first, for example ./my_attack.py",
    )


def _import_plugins(specs: Sequence[str]) -> None:
    from fedveil.orchestrator.config.plugins import load_plugins

    try:
        load_plugins(specs, Path())
    except FedveilError as error:
        raise FedveilError(f"--plugin: {error}") from error


def _writable(path: Path | None, option: str = "--json") -> None:
    """Refuse a result file that could not be written after hours of work."""
    if path is None:
        return
    folder = path.absolute().parent
    if not folder.is_dir():
        raise FedveilError(f"{option} {path}: there is no folder {folder}")
    if path.is_dir():
        raise FedveilError(f"{option} {path}: this is a folder; name a file")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise FedveilError(f"{option} {path}: no permission to write there")


def _init(arguments: argparse.Namespace, console: Console) -> int:
    from fedveil.orchestrator.first_file import first_file

    file: Path = arguments.file
    if os.path.lexists(file):
        raise FedveilError(f"{file}: is there already; name another file, or move it away")
    _writable(file, "init")
    made = first_file(arguments.data, str(file))
    file.write_text(made.text, encoding="utf-8")
    console.print(f"{file} is written. Run it with:  [bold]fedveil sweep {escape(str(file))}[/bold]", soft_wrap=True)
    return 0


def _overrides(arguments: argparse.Namespace) -> list[str]:
    place = arguments.runs_dir
    return [*arguments.set, *([] if place is None else [f"runs_dir={json.dumps(place)}"])]


def _run(arguments: argparse.Namespace, console: Console) -> int:
    from fedveil.orchestrator.run.api import run
    from fedveil.orchestrator.run.paths import ExperimentPaths

    _writable(arguments.json)
    result = run(
        arguments.file, overrides=_overrides(arguments), plugins=arguments.plugin, ray=arguments.ray, console=console
    )
    code = _finish(result.rows, result.records, result.experiment, arguments.json, console)
    paths = ExperimentPaths(result.root)
    grids = [grid for row in result.rows if (grid := paths.trial(row.name).grid).exists()]
    _say_where(result, {"pictures": grids[0]} if grids else {}, console)
    return code


def _sweep(arguments: argparse.Namespace, console: Console) -> int:
    from fedveil.orchestrator.run.api import sweep

    _writable(arguments.json)
    result = sweep(
        arguments.file,
        overrides=_overrides(arguments),
        plugins=arguments.plugin,
        ray=arguments.ray,
        resume=arguments.resume,
        console=console,
    )
    code = _finish(result.rows, result.records, result.experiment, arguments.json, console)
    _say_where(result, {figure.stem: figure for figure in result.files}, console)
    return code


def _say_where(result: RunResult, figures: Mapping[str, Path], console: Console) -> None:
    """Say where the files of an experiment are, and how to look at its trials; of several seeds the first one's picture."""
    for what, place in {**figures, "per trial": result.root / "trials"}.items():
        console.print(f"{what:<11} {_near(place)}", soft_wrap=True, markup=False)
    name = result.experiment
    console.print("Compare the trials in MLflow:  [bold]fedveil ui[/bold]")
    console.print(
        f"A page to hand on:             [bold]fedveil report {name} --html {name}.html[/bold]", soft_wrap=True
    )


def _near(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _finish(
    rows: Sequence[TrialRow],
    records: Records,
    experiment: str,
    file: Path | None,
    console: Console,
) -> int:
    from fedveil.orchestrator.report import TrialTable
    from fedveil.orchestrator.report.recorded import rows_as_json

    console.print(TrialTable(rows, records))
    if file is not None:
        file.write_text(json.dumps(rows_as_json(experiment, rows), indent=2) + "\n", encoding="utf-8")
    return 1 if any(row.status == "FAILED" for row in rows) else 0


def _report(arguments: argparse.Namespace, console: Console) -> int:
    from fedveil.orchestrator.report.recorded import records_from_mlflow, rows_from_mlflow

    _writable(arguments.json)
    _writable(arguments.html, "--html")
    _import_plugins(arguments.plugin)
    uri = _uri(arguments.uri)
    if arguments.html is None:
        rows = rows_from_mlflow(uri, arguments.experiment)
        _finish(rows, records_from_mlflow(uri, arguments.experiment), arguments.experiment, arguments.json, console)
    else:
        dossier = _write_page(arguments.html, uri, arguments.experiment)
        _finish(dossier.rows, dossier.records, arguments.experiment, arguments.json, console)
        console.print(f"page        {_near(arguments.html.absolute())}", soft_wrap=True, markup=False)
    return 0  # the report succeeded, whatever became of the trials


def _write_page(file: Path, uri: str, experiment: str) -> Dossier:
    from fedveil.orchestrator.report.dossier import dossier_from_mlflow
    from fedveil.orchestrator.report.html.page import html_page
    from fedveil.orchestrator.run.private import private_file

    dossier = dossier_from_mlflow(uri, experiment)
    # It may show images of people: whom it is handed on to is for its owner to say.
    private_file(file).write_text(html_page(dossier), encoding="utf-8")
    return dossier


def _list(arguments: argparse.Namespace, console: Console) -> int:
    from fedveil.orchestrator.listing import KINDS, show_all, show_one

    _import_plugins(arguments.plugin)
    if arguments.name is None:
        show_all(KINDS[arguments.kind], console)
    else:
        show_one(KINDS[arguments.kind], arguments.name, console)
    return 0


def _data_list(arguments: argparse.Namespace, console: Console) -> int:
    from fedveil.fl.data import available

    _import_plugins(arguments.plugin)
    table = Table(box=None, header_style="bold")
    for title in ("name", "here", "sizes", "channels", "classes"):
        table.add_column(title, no_wrap=True)  # names are copied: none is cut or broken
    table.add_column("source", overflow="fold")
    for entry in available():
        here, channels, classes = "yes" if entry.present else "-", entry.channels or "?", entry.classes or "?"
        table.add_row(*map(Text, (entry.name, here, entry.size_text(), str(channels), str(classes), entry.origin)))
    console.print(table)
    return 0


def _data_get(arguments: argparse.Namespace, console: Console) -> int:
    from fedveil.fl.data import fetch

    _import_plugins(arguments.plugin)
    print(fetch(arguments.name, size=arguments.size))
    return 0


def _schema(arguments: argparse.Namespace, console: Console) -> int:
    from fedveil.orchestrator.json_schema import experiment_schema

    _import_plugins(arguments.plugin)
    print(json.dumps(experiment_schema(), indent=1, ensure_ascii=False))
    return 0


def _doctor(arguments: argparse.Namespace, console: Console) -> int:
    from fedveil.orchestrator.doctor import Level, examine

    worst = Level.OK
    for finding in examine(_uri(arguments.uri)):
        console.print(finding.line(), soft_wrap=True)
        worst = max(worst, finding.level)
    return 1 if worst is Level.FAIL else 0


def _uri(given: str | None) -> str:
    return given or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').absolute()}"


def _ui(arguments: argparse.Namespace, console: Console) -> int:
    from fedveil.orchestrator.report.recorded import check_uri, experiment_views
    from fedveil.orchestrator.tracking import without_passwords
    from fedveil.orchestrator.ui import serve

    uri = _uri(arguments.uri)
    check_uri(uri)
    if uri.startswith(("http", "databricks")):
        console.print(f"MLflow runs at {without_passwords(uri)}")
        return 0
    return serve(uri, arguments.port, experiment_views(uri), console, browser=arguments.browser)
