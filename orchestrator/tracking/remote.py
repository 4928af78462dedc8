"""One run on the MLflow server, wrapped so that sending twice leaves the same record as sending once."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TypeVar

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # it would create a run again, not look for it
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")

from mlflow.entities import Experiment, LifecycleStage, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from requests import HTTPError

from fedveil.orchestrator.tracking.database import build_database, reach
from fedveil.orchestrator.tracking.names import (
    ABANDONED,
    CLOSED_TAG,
    ERROR_TAG,
    MAX_TAG,
    STOPPED_TAG,
    TOKEN_TAG,
    TRACEBACK_TAG,
    cut,
)
from fedveil.orchestrator.tracking.operations import Open, ParentMissingError, RunStatus
from fedveil.orchestrator.tracking.settings import without_passwords
from fedveil.orchestrator.tracking.spool import PENDING
from fedveil.orchestrator.tracking.views import SweptKey, experiment_tags

_log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_METRICS = 1000
MAX_PARAMS_OR_TAGS = 100
_UNKNOWN = "RESOURCE_DOES_NOT_EXIST"
_REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", _UNKNOWN, "RESOURCE_ALREADY_EXISTS"}
_REFUSED_HTTP = {400, 404, 405, 409, 413, 422}


def refused_for_good(error: Exception) -> bool:
    """Whether trying again is pointless; anything else (no answer, no permission yet, overload) may pass."""
    if isinstance(error, MlflowException):
        return str(error.error_code) in _REFUSALS
    if isinstance(error, HTTPError) and error.response is not None:
        return error.response.status_code in _REFUSED_HTTP
    return isinstance(error, FileNotFoundError | UnicodeError)


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


class RemoteRun:
    """The server's side of one journal, for one attempt to deliver it.

    Args:
        uri: MLflow's tracking URI.
        run_id: the run, or None before `open`.
    """

    def __init__(self, uri: str, run_id: str | None) -> None:
        self.uri = uri
        reach(uri)
        build_database(uri)
        self._client = MlflowClient(tracking_uri=uri)
        self._run_id = run_id
        self._fresh = False
        self._steps: dict[str, set[int]] = {}

    @property
    def is_open(self) -> bool:
        """Whether `run_id` is known."""
        return self._run_id is not None

    @property
    def run_id(self) -> str:
        """The MLflow run id.

        Raises:
            RuntimeError: `open` has not been sent.
        """
        if self._run_id is None:
            raise RuntimeError("the run is not open")
        return self._run_id

    def open(self, opening: Open) -> None:
        """Find the run by its id or its token and mark it as running, or create it."""
        experiment_id = self._experiment(opening.experiment)
        parent = None if opening.parent is None else self._resolve(experiment_id, opening.parent)
        run = self._by_id(opening.run_id) or self._by_token(experiment_id, opening.token)
        if run is None:
            tags = {**opening.tags, TOKEN_TAG: opening.token}
            if parent is not None:
                tags[MLFLOW_PARENT_RUN_ID] = parent
            run = self._client.create_run(experiment_id, start_time=opening.time, tags=tags, run_name=opening.name)
            self._fresh = True
            self._delete_doubles(run)
        elif run.info.status != "RUNNING":
            for key in {ERROR_TAG, TRACEBACK_TAG, STOPPED_TAG} & run.data.tags.keys():
                self._client.delete_tag(run.info.run_id, key)  # of an end that it turns out not to be
            self._client.update_run(run.info.run_id, status="RUNNING")
        self._run_id = run.info.run_id

    def set_params(self, params: Mapping[str, str]) -> None:
        """Log the params that the run does not have yet; MLflow never lets one change."""
        present = {} if self._fresh else self._client.get_run(self.run_id).data.params
        missing = [Param(key, value) for key, value in params.items() if key not in present]
        for chunk in _chunks(missing, MAX_PARAMS_OR_TAGS):
            self._client.log_batch(self.run_id, params=chunk)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; long values are cut."""
        texts = (RunTag(key, cut(value, MAX_TAG)) for key, value in tags.items())
        for chunk in _chunks(texts, MAX_PARAMS_OR_TAGS):
            self._client.log_batch(self.run_id, tags=chunk)

    def log_points(self, values: Mapping[str, float], *, step: int, time: int) -> None:
        """Log the metrics that have no point at ``step`` yet."""
        missing = [Metric(key, value, time, step) for key, value in values.items() if step not in self._seen(key)]
        for chunk in _chunks(missing, MAX_METRICS):
            self._client.log_batch(self.run_id, metrics=chunk)
            for metric in chunk:
                self._steps[metric.key].add(step)

    def upload(self, file: Path, folder: str | None) -> None:
        """Upload a file; one of the same name in the same folder is replaced."""
        if not file.exists() and self._has(file.name, folder):
            return  # it was sent and deleted here, and the mark of that was lost
        self._client.log_artifact(self.run_id, str(file), folder)

    def close(self, status: str, time: int) -> None:
        """Set the final status, unless a later close has been delivered already."""
        run = self._client.get_run(self.run_id)
        self._delete_doubles(run)
        tags = run.data.tags
        if int(tags.get(CLOSED_TAG, "0")) > time:
            return
        if tags.get(ERROR_TAG) == ABANDONED and (status != RunStatus.KILLED or STOPPED_TAG in tags):
            self._client.delete_tag(self.run_id, ERROR_TAG)
        self._client.set_terminated(self.run_id, status=status, end_time=time)
        self.set_tags({CLOSED_TAG: str(time)})

    def close_children(self, time: int) -> None:
        """Set the children that still run to killed, with an error that says so."""
        experiment_id = self._client.get_run(self.run_id).info.experiment_id
        running = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self.run_id}' and attributes.status = 'RUNNING'"
        while children := self._client.search_runs([experiment_id], running):
            for child in children:
                self._client.set_tag(child.info.run_id, ERROR_TAG, ABANDONED)
                self._client.set_terminated(child.info.run_id, status=RunStatus.KILLED, end_time=time)

    def describe_experiment(self, swept: Sequence[SweptKey], *, image_step: int) -> None:
        """Set the experiment's description, kind and saved view; a description that someone wrote stays."""
        experiment_id = self._client.get_run(self.run_id).info.experiment_id
        present = self._client.get_experiment(experiment_id).tags
        for key, value in experiment_tags(experiment_id, present, swept, image_step=image_step).items():
            self._client.set_experiment_tag(experiment_id, key, value)

    def _has(self, name: str, folder: str | None) -> bool:
        return any(PurePosixPath(one.path).name == name for one in self._client.list_artifacts(self.run_id, folder))

    def _seen(self, key: str) -> set[int]:
        """The steps at which the server has ``key``; it is asked only where this process cannot know."""
        if key not in self._steps:
            history = [] if self._fresh else self._client.get_metric_history(self.run_id, key)
            self._steps[key] = {metric.step for metric in history}
        return self._steps[key]

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name, self._artifact_location(name)))
            except MlflowException:
                found = self._client.get_experiment_by_name(name)  # another process was faster
                if found is None:
                    raise
        return self._alive(found)

    def _alive(self, experiment: Experiment) -> str:
        if experiment.lifecycle_stage == LifecycleStage.DELETED:
            _log.warning("experiment %r was deleted in MLflow; it is restored", experiment.name)
            self._client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)

    def _artifact_location(self, name: str) -> str | None:
        """Beside a SQLite file, since MLflow's default depends on the working folder."""
        if not self.uri.startswith("sqlite:///"):
            return None
        safe = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name)
        return (Path(self.uri.removeprefix("sqlite:///")).parent / "mlartifacts" / safe).as_uri()

    def _by_id(self, run_id: str | None) -> Run | None:
        if run_id is None:
            return None
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if str(error.error_code) != _UNKNOWN:
                raise
            run = None
        if run is None or run.info.lifecycle_stage == LifecycleStage.DELETED:
            _log.warning("MLflow at %s has no run %s any more; a new one is made", without_passwords(self.uri), run_id)
            return None
        return run

    def _by_token(self, experiment_id: str, token: str) -> Run | None:
        found = self._client.search_runs([experiment_id], f"tags.`{TOKEN_TAG}` = '{token}'", max_results=1)
        return found[0] if found else None

    def _delete_doubles(self, run: Run) -> None:
        """Delete the empty runs that requests left behind whose answer was lost, or came too late to be waited for.

        They hold the token alone: whatever is recorded goes to the run that was found or created last.
        """
        token = run.data.tags.get(TOKEN_TAG)
        if token is None:  # nobody's but the one who gave its id
            return
        for double in self._client.search_runs([run.info.experiment_id], f"tags.`{TOKEN_TAG}` = '{token}'"):
            if double.info.run_id != run.info.run_id:
                _log.warning("MLflow made run %s twice; %s is deleted", run.info.run_id, double.info.run_id)
                try:
                    self._client.delete_run(double.info.run_id)
                except MlflowException as error:
                    if str(error.error_code) != "PERMISSION_DENIED":
                        raise
                    _log.warning("it is not: %s", error)

    def _resolve(self, experiment_id: str, reference: str) -> str:
        """The run id behind ``reference``, which is one already or a pending name."""
        if not reference.startswith(PENDING):
            return reference
        run = self._by_token(experiment_id, reference.removeprefix(PENDING))
        if run is None:
            raise ParentMissingError(f"the parent run {reference} has not been delivered yet")
        return str(run.info.run_id)
