"""Trials as rows: out of MLflow, and as plain values for scripts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fl.errors import FedveilError
from orchestrator.cluster import first_line
from orchestrator.report import TrialRow
from orchestrator.tracking import view_path
from orchestrator.tracking.names import KIND_TAG

SQLITE = "sqlite:///"


def rows_as_json(experiment: str, rows: Sequence[TrialRow]) -> dict[str, Any]:
    """Return trials as plain values, for ``--json``."""
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
    }


def rows_from_mlflow(uri: str, experiment: str) -> list[TrialRow]:
    """Return the recorded trials of an experiment, oldest first.

    Raises:
        FedveilError: MLflow does not answer, or there is no such experiment.
    """
    client = _client(uri)
    try:
        found = client.get_experiment_by_name(experiment)
        names = [] if found else sorted(experiment_views(uri))
        runs = _trials(client, found.experiment_id) if found else []
    except Exception as error:  # MLflow raises what its transport raises
        raise FedveilError(f"MLflow at {uri} does not answer: {first_line(error)}") from error
    if found is None:
        raise FedveilError(f"no experiment {experiment!r} at {uri}; there are: {', '.join(names) or 'none'}")
    return [
        TrialRow(
            run.info.run_name,
            run.info.status,
            dict(run.data.params),
            dict(run.data.metrics),
            run.data.tags.get("error"),
        )
        for run in runs
    ]


def _trials(client: Any, experiment_id: str) -> list[Any]:
    runs: list[Any] = []
    token = None
    while True:
        page = client.search_runs(
            [experiment_id],
            filter_string=f"tags.`{KIND_TAG}` = 'trial'",
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
        FedveilError: there is no record at ``uri`` yet.
    """
    return {e.name: view_path(e.experiment_id) for e in _client(uri).search_experiments() if e.name != "Default"}


def _client(uri: str) -> Any:
    # MLflow would make the file, and a minute later say that it is empty.
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        raise FedveilError(f"{uri}: there is no record here yet; run an experiment first")
    # For its short timeouts: MLflow's own defaults let a dead server hold a client for minutes.
    import orchestrator.tracking.remote  # noqa: F401, I001 - before MLflow, which reads some of them on import
    from mlflow import MlflowClient

    return MlflowClient(uri)
