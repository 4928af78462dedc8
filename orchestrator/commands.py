"""What each command of the command line does; each returns the exit code. What a command alone needs is imported in it."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from fedveil.fl.errors import FedveilError

if TYPE_CHECKING:
    from fedveil.orchestrator.report import TrialRow
    from fedveil.orchestrator.report.dossier import Dossier
    from fedveil.orchestrator.report.matched import Records
    from fedveil.orchestrator.run.results import RunResult

_LOCAL = "sqlite:///"
_DATABASE = "mlflow.db"
_LOG_COLUMNS = 200


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


def init(arguments: argparse.Namespace, console: Console) -> int:
    """Write a first experiment file."""
    from fedveil.orchestrator.first_file import first_file

    file: Path = arguments.file
    if os.path.lexists(file):
        raise FedveilError(f"{file}: is there already; name another file, or move it away")
    _writable(file, "init")
    quoted = shlex.quote(str(file))
    made = first_file(arguments.data, quoted)
    file.write_text(made.text, encoding="utf-8")
    console.print(f"{file} is written. Run it with:  [bold]fedveil sweep {escape(quoted)}[/bold]", soft_wrap=True)
    return 0


def _overrides(arguments: argparse.Namespace) -> list[str]:
    place = arguments.runs_dir
    return [*arguments.set, *([] if place is None else [f"runs_dir={json.dumps(place)}"])]


def run_one(arguments: argparse.Namespace, console: Console) -> int:
    """Run one trial."""
    from fedveil.orchestrator.run.api import run
    from fedveil.orchestrator.run.paths import ExperimentPaths

    _writable(arguments.json)
    result = run(
        arguments.file,
        overrides=_overrides(arguments),
        plugins=arguments.plugin,
        ray=arguments.ray,
        resume=arguments.resume,
        console=console,
    )
    written = _finish(result.rows, result.records, result.experiment, arguments.json, console)
    paths = ExperimentPaths(result.root)
    grids = [grid for row in result.rows if (grid := paths.trial(row.name).grid).exists()]
    _say_where(result, {"pictures": grids[0]} if grids else {}, console)
    return _code(result.rows, written)


def run_sweep(arguments: argparse.Namespace, console: Console) -> int:
    """Run a sweep."""
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
    written = _finish(result.rows, result.records, result.experiment, arguments.json, console)
    _say_where(result, {figure.stem: figure for figure in result.files}, console)
    return _code(result.rows, written)


def _say_where(result: RunResult, figures: Mapping[str, Path], console: Console) -> None:
    """Say where the files of an experiment are, and how to look at its trials; of several seeds the first one's picture."""
    for what, place in {**figures, "per trial": result.root / "trials"}.items():
        console.print(f"{what:<11} {_near(place)}", soft_wrap=True, markup=False)
    name, option = result.experiment, _uri_option(result.uri)
    for what, command in {
        "Compare the trials in MLflow": f"fedveil ui{option}",
        "A page to hand on": f"fedveil report {name}{option} --html {name}.html",
    }.items():
        console.print(Text.assemble(f"{what}:  ", (command, "bold")), soft_wrap=True)


def _uri_option(uri: str) -> str:
    """What a command needs to find a record from this folder, in a shell without the variables that a job may have."""
    from fedveil.orchestrator.tracking import without_passwords

    own = f"{_LOCAL}{Path(_DATABASE).absolute()}"
    return "" if uri in (own, f"{_LOCAL}{_DATABASE}") else f" --uri {shlex.quote(without_passwords(uri))}"


def _for_table(console: Console) -> Console:
    """A log is as wide as its lines: there the table leaves nothing out, unless COLUMNS says how wide it may be."""
    logged = not (console.is_terminal or "COLUMNS" in os.environ)
    return Console(file=console.file, width=_LOG_COLUMNS) if logged else console


def _near(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _code(rows: Sequence[TrialRow], written: bool) -> int:
    return 0 if written and all(row.status != "FAILED" for row in rows) else 1


def _finish(
    rows: Sequence[TrialRow],
    records: Records,
    experiment: str,
    file: Path | None,
    console: Console,
) -> bool:
    """Show the trials, and return whether they were written as JSON, where that was asked for."""
    from fedveil.orchestrator.report import TrialTable
    from fedveil.orchestrator.report.recorded import rows_as_json

    _for_table(console).print(TrialTable(rows, records))
    if file is None:
        return True
    text = json.dumps(rows_as_json(experiment, rows), indent=2) + "\n"
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:  # the disk is full, say; all else is recorded, and where it lies is said next
        again = f"fedveil report {experiment} --json FILE writes the same"
        console.print(f"--json: {file}: {error.strerror or error}; {again}", soft_wrap=True, markup=False)
        return False
    return True


def report(arguments: argparse.Namespace, console: Console) -> int:
    """Show recorded trials, or write the page to hand on."""
    from fedveil.orchestrator.report.recorded import records_from_mlflow, rows_from_mlflow

    _writable(arguments.json)
    _writable(arguments.html, "--html")
    _import_plugins(arguments.plugin)
    uri = _uri(arguments.uri)
    if arguments.html is None:
        rows = rows_from_mlflow(uri, arguments.experiment)
        records = records_from_mlflow(uri, arguments.experiment)
        written = _finish(rows, records, arguments.experiment, arguments.json, console)
    else:
        dossier = _write_page(arguments.html, uri, arguments.experiment)
        written = _finish(dossier.rows, dossier.records, arguments.experiment, arguments.json, console)
        console.print(f"page        {_near(arguments.html.absolute())}", soft_wrap=True, markup=False)
    return 0 if written else 1  # it succeeded, whatever became of the trials


def _write_page(file: Path, uri: str, experiment: str) -> Dossier:
    from fedveil.orchestrator.report.dossier import dossier_from_mlflow
    from fedveil.orchestrator.report.html.page import html_page
    from fedveil.orchestrator.run.private import private_file

    dossier = dossier_from_mlflow(uri, experiment)
    # It may show images of people: whom it is handed on to is for its owner to say.
    private_file(file).write_text(html_page(dossier), encoding="utf-8")
    return dossier


def list_names(arguments: argparse.Namespace, console: Console) -> int:
    """List what has a name, or show one."""
    from fedveil.orchestrator.listing import KINDS, show_all, show_one

    _import_plugins(arguments.plugin)
    if arguments.kind is None:
        console.print("\n".join(f"fedveil list {kind}" for kind in KINDS))
    elif arguments.name is None:
        show_all(KINDS[arguments.kind], console)
    else:
        show_one(KINDS[arguments.kind], arguments.name, console)
    return 0


def list_data(arguments: argparse.Namespace, console: Console) -> int:
    """List data sets."""
    from fedveil.fl.data import available
    from fedveil.orchestrator.data_list import show_data

    _import_plugins(arguments.plugin)
    show_data(available(), console)
    return 0


def get_data(arguments: argparse.Namespace, console: Console) -> int:
    """Find or download a data set."""
    from fedveil.fl.data import fetch

    _import_plugins(arguments.plugin)
    print(fetch(arguments.name, size=arguments.size))
    return 0


def schema(arguments: argparse.Namespace, console: Console) -> int:
    """Print the schema of experiment files."""
    from fedveil.orchestrator.json_schema import experiment_schema

    _import_plugins(arguments.plugin)
    print(json.dumps(experiment_schema(), indent=1, ensure_ascii=False))
    return 0


def complete(arguments: argparse.Namespace, console: Console) -> int:
    """Print what makes a shell complete what is typed."""
    from fedveil.orchestrator.cli import parser
    from fedveil.orchestrator.completion import completion
    from fedveil.orchestrator.listing import KINDS

    _import_plugins(arguments.plugin)
    names = {name: [entry.name for entry in kind.entries()] for name, kind in KINDS.items()}
    print(completion(arguments.shell, parser(), names), end="")
    return 0


def check(arguments: argparse.Namespace, console: Console) -> int:
    """Examine this machine, or an update."""
    if arguments.update is not None:
        return _check_update(arguments, console)
    for option in ("model", "weights", "kind", "learning_rate", "local_steps", "batch_size", "image_shape", "mode"):
        if getattr(arguments, option) is not None:
            raise FedveilError(f"--{option.replace('_', '-')}: this is of an update; name that too (--update FILE)")
    from fedveil.orchestrator.doctor import Level, examine

    worst = Level.OK
    for finding in examine(_uri(arguments.uri)):
        console.print(finding.line(), soft_wrap=True)
        worst = max(worst, finding.level)
    return 1 if worst is Level.FAIL else 0


def _check_update(arguments: argparse.Namespace, console: Console) -> int:
    from fedveil.orchestrator.update_doctor import UpdateFiles, examine, print_diagnosis

    files = UpdateFiles(
        update=arguments.update,
        model=arguments.model,
        weights=arguments.weights,
        kind=arguments.kind,
        learning_rate=arguments.learning_rate,
        local_steps=arguments.local_steps,
    )
    diagnosis = examine(
        files, image_shape=arguments.image_shape, batch_size=arguments.batch_size, mode=arguments.mode or "train"
    )
    return print_diagnosis(diagnosis, console)


def _uri(given: str | None) -> str:
    """Where the record is: what was named, with the login that the variable has for it, or else what the variable names."""
    from fedveil.orchestrator.tracking.logins import remember, with_login

    own = os.environ.get("MLFLOW_TRACKING_URI") or f"{_LOCAL}{Path(_DATABASE).absolute()}"
    remember(own)
    return with_login(given or own)


def show(arguments: argparse.Namespace, console: Console) -> int:
    """Open the MLflow user interface, or say where it is."""
    from fedveil.orchestrator.report.recorded import check_uri, experiment_views
    from fedveil.orchestrator.tracking import without_passwords
    from fedveil.orchestrator.ui import serve

    uri = _uri(arguments.uri)
    check_uri(uri)
    if uri.startswith(("http", "databricks")):
        console.print(f"MLflow runs at {without_passwords(uri)}")
        return 0
    return serve(uri, arguments.port, experiment_views(uri), console, browser=arguments.browser)
