"""Trials as rows: out of MLflow, and as plain values for scripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fl.errors import FedveilError
from orchestrator.report import TrialRow
from orchestrator.tracking import view_path
from orchestrator.tracking.names import KIND_TAG


def rows_as_json(experiment: str, rows: Sequence[TrialRow]) -> dict[str, Any]:
    """Return trials as plain values, for ``--json``."""
    return {
        "experiment": experiment,
        "trials": [
            {
                "name": row.name,
                "status": row.status,
                "params": dict(row.params),
                "metrics": dict(row.metrics),
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
        names = [] if found else sorted(e.name for e in client.search_experiments())
    except Exception as error:  # MLflow raises what its transport raises
        raise FedveilError(f"MLflow at {uri} does not answer: {str(error).splitlines()[0]}") from error
    if found is None:
        raise FedveilError(f"no experiment {experiment!r} at {uri}; there are: {', '.join(names) or 'none'}")
    runs: list[Any] = []
    token = None
    while True:
        page = client.search_runs(
            [found.experiment_id],
            filter_string=f"tags.`{KIND_TAG}` = 'trial'",
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        runs += page
        token = page.token
        if not token:
            break
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


def experiment_views(uri: str) -> dict[str, str]:
    """Return, by experiment name, the part after the server's address that opens its saved view."""
    return {e.name: view_path(e.experiment_id) for e in _client(uri).search_experiments() if e.name != "Default"}


def _client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri)
