"""Trials as rows: out of MLflow, and as plain values for scripts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedveil.fl.errors import FedveilError, brief
from fedveil.fl.messages import PrivacyRecord
from fedveil.orchestrator.config.explain import shown
from fedveil.orchestrator.config.uri import SQLITE, uri_fault
from fedveil.orchestrator.report import TrialRow, group_seeds
from fedveil.orchestrator.report.rows import FINISHED
from fedveil.orchestrator.run.checkpoint import load_records
from fedveil.orchestrator.tracking import view_path, without_passwords
from fedveil.orchestrator.tracking.names import KIND_TAG, RECORDS
from fedveil.orchestrator.tracking.trouble import LOGIN, login_refused, reason

INTERVALS = ("utility/accuracy", "privacy/mse")

_SQLITE_START = b"SQLite format 3\0"


def rows_as_json(experiment: str, rows: Sequence[TrialRow]) -> dict[str, Any]:
    """Return trials as plain values, for ``--json``; ``settings`` holds their means over seeds with 95 % intervals."""
    return {
        "experiment": experiment,
        "trials": [
            {
                "name": row.name,
                "status": row.status,
                "params": dict(row.params),
                # JSON has no word for NaN and infinity.
                "metrics": {key: value if math.isfinite(value) else None for key, value in row.metrics.items()},
                "error": row.error,
            }
            for row in rows
        ],
        "settings": [
            {
                "name": group.name,
                "seeds": [row.params.get("seed") for row in group.members],
                "metrics": {key: value if math.isfinite(value) else None for key, value in group.metrics.items()},
                "intervals": {name: ends for name in INTERVALS if (ends := group.interval(name)) is not None},
            }
            for group in group_seeds([row for row in rows if row.finished])
        ],
    }


def rows_from_mlflow(uri: str, experiment: str) -> list[TrialRow]:
    """Return the recorded trials of an experiment, oldest first. Params that MLflow keeps as text are numbers again.

    Raises:
        FedveilError: MLflow does not answer, this is no tracking URI, or there is no such experiment.
    """
    with mlflow_client(uri) as client:
        return [row_of(run) for run in runs_of(client, uri, experiment)]


def row_of(run: Any) -> TrialRow:
    """Return MLflow's run of a trial as a row."""
    return TrialRow(
        run.info.run_name,
        run.info.status,
        {key: _plain(value) for key, value in run.data.params.items()},
        dict(run.data.metrics),
        run.data.tags.get("error"),
    )


def records_from_mlflow(uri: str, experiment: str) -> dict[str, tuple[PrivacyRecord, ...]]:
    """Return the victims' records of an experiment's finished trials, by name.

    Trials that share a name have none, nor have those whose records another version of fedveil wrote.

    Raises:
        FedveilError: see `rows_from_mlflow`.
    """
    records = {}
    with mlflow_client(uri) as client, TemporaryDirectory() as scratch:
        runs = [run for run in runs_of(client, uri, experiment) if run.info.status == FINISHED]
        times = Counter(run.info.run_name for run in runs)
        for info in (run.info for run in runs if times[run.info.run_name] == 1):
            if any(file.path == RECORDS for file in client.list_artifacts(info.run_id)):
                path = Path(client.download_artifacts(info.run_id, RECORDS, scratch))
                with suppress(KeyError, TypeError, ValueError):  # its fields have other names, or it is damaged
                    records[info.run_name] = load_records(path)
    return records


def runs_of(client: Any, uri: str, experiment: str, kind: str = "trial") -> list[Any]:
    """Return MLflow's runs of an experiment's trials, or of its sweeps, oldest first.

    Args:
        client: see `mlflow_client`.
        uri: that of the client.
        experiment: its name.
        kind: ``trial`` or ``sweep``.

    Raises:
        FedveilError: there is no such experiment.
    """
    found = client.get_experiment_by_name(experiment)
    if found is None:
        names = ", ".join(sorted(_views(client))) or "none"
        raise FedveilError(f"no experiment {experiment!r} at {without_passwords(uri)}; there are: {names}")
    return _pages(client, found.experiment_id, kind)


def _plain(text: str) -> str | float:
    """Return a param as the number that was written there, or as it is."""
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        # Only what Python itself writes for a number: "1_000" and " 7" are text.
        return number if str(number) == text and math.isfinite(number) else text
    return text


def _pages(client: Any, experiment_id: str, kind: str) -> list[Any]:
    runs: list[Any] = []
    token = None
    while True:
        page = client.search_runs(
            [experiment_id],
            filter_string=f"tags.`{KIND_TAG}` = '{kind}'",
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        runs += page
        token = page.token
        if not token:
            return runs


def experiment_views(uri: str) -> dict[str, str]:
    """Return, by experiment name, the part after the server's address that opens its saved view.

    Raises:
        FedveilError: there is no record at ``uri`` yet, or see `rows_from_mlflow`.
    """
    with mlflow_client(uri) as client:
        return _views(client)


def _views(client: Any) -> dict[str, str]:
    return {e.name: view_path(e.experiment_id) for e in client.search_experiments() if e.name != "Default"}


def check_uri(uri: str) -> None:
    """Refuse what cannot be a record; a server is not asked.

    Raises:
        FedveilError: this is no tracking URI, or one of a file that is missing or no database.
    """
    rule = uri_fault(uri)
    if rule is not None:
        raise FedveilError(f"MLflow's tracking URI: given {shown(uri)}; {rule}")
    if not uri.startswith(SQLITE):
        return
    # MLflow would make the file, and a minute later say that it is empty.
    path = Path(uri.removeprefix(SQLITE).partition("?")[0])
    try:
        with path.open("rb") as stream:
            start = stream.read(len(_SQLITE_START))
    except FileNotFoundError:
        raise FedveilError(f"{uri}: there is no record here yet; run an experiment first") from None
    except OSError as error:
        raise FedveilError(f"{uri}: cannot be read ({error.strerror})") from None
    if start not in (b"", _SQLITE_START):
        raise FedveilError(f"{uri}: this file is no SQLite database")


@contextmanager
def mlflow_client(uri: str) -> Iterator[Any]:
    """Open MLflow's client; what goes wrong inside the ``with`` block is said in one line."""
    check_uri(uri)
    try:
        # For its short timeouts: MLflow's own defaults let a dead server hold a client for minutes.
        import fedveil.orchestrator.tracking.remote  # noqa: F401, I001 - before MLflow, which reads some of them on import
        from mlflow import MlflowClient

        yield MlflowClient(uri)
    except FedveilError:
        raise
    except Exception as error:  # MLflow raises what its transport raises
        if login_refused(error):
            raise FedveilError(f"MLflow at {without_passwords(uri)} refuses the login; {LOGIN}") from error
        raise FedveilError(f"MLflow at {without_passwords(uri)} does not answer ({brief(reason(error))})") from error
