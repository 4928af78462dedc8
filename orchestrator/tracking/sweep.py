"""The sweep's run: the parent of all trials, with what was swept, how to read it and what came out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from fedveil.orchestrator.metrics import SUMMARY
from fedveil.orchestrator.tracking.names import ABANDONED, ERROR_TAG, INTERRUPT, MAX_TAG, STOPPED_TAG, check_names, cut
from fedveil.orchestrator.tracking.operations import Close, CloseChildren, DescribeExperiment, Open, RunStatus, Tags
from fedveil.orchestrator.tracking.recorder import RunRecorder, now
from fedveil.orchestrator.tracking.settings import TrackingSettings, without_passwords
from fedveil.orchestrator.tracking.spool import PENDING, Journal
from fedveil.orchestrator.tracking.views import SweptKey, sweep_note

_log = logging.getLogger(__name__)


class SweepTracker(RunRecorder):
    """The parent run, kept by the driver. See `RunRecorder` for what it is as a context manager.

    Args:
        settings: where to; the same go to the trials.
        name: the run's name.
        swept: what the sweep varies, for the description and the experiment's saved view.
        objectives: metric to ``max`` or ``min``.
        params: flat.
        tags: more tags.
        run_id: `run_id` of the sweep that is resumed.
        image_step: the round whose reconstructions the saved view shows first.
    """

    def __init__(
        self,
        settings: TrackingSettings,
        *,
        name: str,
        swept: Sequence[SweptKey] = (),
        objectives: Mapping[str, str] | None = None,
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, str] | None = None,
        run_id: str | None = None,
        image_step: int = 0,
    ) -> None:
        self._left_open = {ERROR_TAG: ABANDONED}
        super().__init__(
            settings,
            kind="sweep",
            name=name,
            parent=None,
            params=params or {},
            tags={**(tags or {}), "mlflow.note.content": sweep_note(swept, objectives or {})},
            run_id=run_id,
        )
        with self._beginning():
            self._record(DescribeExperiment([(key.key, key.space, key.numeric) for key in swept], image_step))

    def summary(
        self, metrics: Mapping[str, float], files: Sequence[Path] = (), *, pictures: Sequence[Path] = (), step: int = 0
    ) -> None:
        """Record what came out of the sweep.

        Args:
            metrics: by names in `metrics.SUMMARY`.
            files: without images of victims: the Pareto figure.
            pictures: with images of several victims; recorded if the settings let ``grid/*`` out.
            step: how often the sweep was resumed: what a start of it has said stays, and the last one counts.

        Raises:
            ValueError: a name is not one of `metrics.SUMMARY`.
            FileNotFoundError: a file is missing.
        """
        check_names("summary metric", metrics, [metric.name for metric in SUMMARY])
        self._points(metrics, step=step)
        for path in (*files, *(path for path in pictures if self.settings.images.allows(f"grid/{path.stem}"))):
            self.log_file(path, "summary")

    def fail_dead(self, said: Mapping[str, str]) -> None:
        """Close as FAILED, with what is said of them by name, the runs of trials that failed without closing them."""
        for journal, opening in self._open_children():
            if opening.name in said:
                self._end(journal, {ERROR_TAG: cut(without_passwords(said[opening.name]), MAX_TAG)}, RunStatus.FAILED)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._left_open = {STOPPED_TAG: INTERRUPT}
        super().__exit__(kind, error, trace)

    def _close(self, status: RunStatus) -> None:
        """Close the run, and mark trials that died as killed."""
        if self._closed:
            return
        self._close_abandoned()
        self._record(CloseChildren(now()))
        super()._close(status)

    def _close_abandoned(self) -> None:
        """Close the journals of trials that died; `CloseChildren` only finds what the server has by then."""
        for journal, _ in self._open_children():
            self._end(journal, self._left_open, RunStatus.KILLED)

    def _open_children(self) -> list[tuple[Journal, Open]]:
        own = {self.run_id, PENDING + self._opening.token}
        try:
            opened = [(journal, journal.opening()) for journal in self._spool.journals()]
            return [(one, said) for one, said in opened if said and said.parent in own and not one.closed()]
        except OSError as error:
            _log.error("the spool %s cannot be read: %s", self.settings.spool_folder, error)
            return []

    def _end(self, journal: Journal, tags: dict[str, str], status: RunStatus) -> None:
        try:
            journal.append(Tags(tags))
            journal.append(Close(status, now()))
        except OSError as error:
            _log.error("%s cannot be written: %s", journal.folder, error)
