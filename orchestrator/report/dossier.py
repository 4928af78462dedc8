"""All that a report to hand on is made of: numbers, settings, versions and pictures, as MLflow has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedveil.orchestrator.config.yaml import YAMLError, parse
from fedveil.orchestrator.report.comparison import representatives
from fedveil.orchestrator.report.matched import Records
from fedveil.orchestrator.report.recorded import mlflow_client, records_from_mlflow, row_of, runs_of
from fedveil.orchestrator.report.rows import TrialRow
from fedveil.orchestrator.tracking import ImagePolicy
from fedveil.orchestrator.tracking.names import RECONSTRUCTION_GRID, VERSIONS_TAG

_PNG = b"\x89PNG\r\n\x1a\n"
_COMPARISON = "summary/comparison.png"


@dataclass(frozen=True)
class Evidence:
    """What the record holds of a trial beside its numbers.

    Attributes:
        settings: the whole configuration; empty where it was not recorded.
        versions: of the software that ran, in words; None where an older fedveil did not write them down.
        began: when.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: str | None = None
    began: datetime | None = None


@dataclass(frozen=True)
class Picture:
    """A figure with images of victims.

    Attributes:
        title: what it is of; the trial's defence, or empty for one that compares them all.
        png: the file.
    """

    title: str
    png: bytes


@dataclass(frozen=True)
class Dossier:
    """An experiment as recorded.

    Attributes:
        experiment: its name.
        rows: its trials, oldest first.
        evidence: of each of them, in the same order.
        records: the victims' scores by trial, see `records_from_mlflow`.
        pictures: as far as they were let into the record; none where one of the trials forbids them.
    """

    experiment: str
    rows: tuple[TrialRow, ...]
    evidence: tuple[Evidence, ...]
    records: Records = field(default_factory=dict)
    pictures: tuple[Picture, ...] = ()

    @property
    def forbidden(self) -> bool:
        """One of the trials says ``tracking.images: none``: no picture of the experiment is handed on."""
        return forbids_pictures(self.evidence)

    @property
    def settings(self) -> list[Mapping[str, Any]]:
        """The configurations that were recorded, of finished trials where there are any."""
        both = list(zip(self.rows, self.evidence, strict=True))
        finished = [evidence.settings for row, evidence in both if row.finished and evidence.settings]
        return finished or [evidence.settings for _, evidence in both if evidence.settings]


def forbids_pictures(evidence: Sequence[Evidence]) -> bool:
    """Return whether one of the trials asked for no pictures."""
    sections = [one.settings.get("tracking") for one in evidence]
    return any(isinstance(one, Mapping) and one.get("images") == ImagePolicy.NONE for one in sections)


def dossier_from_mlflow(uri: str, experiment: str) -> Dossier:
    """Return an experiment as recorded.

    Raises:
        FedveilError: MLflow does not answer, this is no tracking URI, or there is no such experiment.
    """
    with mlflow_client(uri) as client, TemporaryDirectory() as scratch:
        files = _Artifacts(client, Path(scratch))
        runs = runs_of(client, uri, experiment)
        rows = tuple(row_of(run) for run in runs)
        evidence = tuple(_evidence(run, files) for run in runs)
        pictures: tuple[Picture, ...] = ()
        if not forbids_pictures(evidence):
            sweeps = [run.info.run_id for run in runs_of(client, uri, experiment, "sweep")]
            ids = {id(row): run.info.run_id for row, run in zip(rows, runs, strict=True)}
            pictures = tuple(_comparisons(sweeps, files)) or tuple(_grids(rows, ids, files))
    return Dossier(experiment, rows, evidence, records_from_mlflow(uri, experiment), pictures)


@dataclass(frozen=True)
class _Artifacts:
    """Reads files of runs; ``scratch`` is where they may be put."""

    client: Any
    scratch: Path

    def names(self, run: str, folder: str | None = None) -> list[str]:
        return sorted(file.path for file in self.client.list_artifacts(run, folder) if not file.is_dir)

    def read(self, run: str, path: str) -> bytes:
        return Path(self.client.download_artifacts(run, path, str(self.scratch))).read_bytes()


def _evidence(run: Any, files: _Artifacts) -> Evidence:
    name = "experiment.yaml"
    settings = _mapping(files.read(run.info.run_id, name)) if name in files.names(run.info.run_id) else {}
    began = datetime.fromtimestamp(run.info.start_time / 1000, UTC) if run.info.start_time else None
    return Evidence(settings, run.data.tags.get(VERSIONS_TAG), began)


def _mapping(text: bytes) -> Mapping[str, Any]:
    try:
        found = parse(text.decode("utf-8", "replace"))
    except YAMLError:
        return {}
    return found if isinstance(found, Mapping) else {}


def _comparisons(sweeps: Sequence[str], files: _Artifacts) -> Iterator[Picture]:
    """Yield the newest sweep's comparison, if any has one."""
    for run in reversed(sweeps):
        if _COMPARISON in files.names(run, "summary"):
            png = files.read(run, _COMPARISON)
            if png.startswith(_PNG):
                yield Picture("", png)
                return


def _grids(rows: Sequence[TrialRow], runs: Mapping[int, str], files: _Artifacts) -> Iterator[Picture]:
    """Yield a grid per defence: of the setting that stands for it, under its first seed."""
    start = f"images/{RECONSTRUCTION_GRID.replace('/', '~')}+"
    for setting in representatives(rows):
        run = runs[id(setting.members[0])]
        found = [name for name in files.names(run, "images") if name.startswith(start) and name.endswith(".png")]
        png = files.read(run, found[0]) if found else b""
        if png.startswith(_PNG):
            yield Picture(setting.title, png)
