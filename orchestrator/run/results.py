"""What came out of a run or a sweep: rows, records and files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import TypeVar

import torch
from torch import Tensor

from fedveil.attacks.scoring import BASELINE_ATTACK
from fedveil.fl.messages import PrivacyRecord
from fedveil.orchestrator.cluster.connection import first_line
from fedveil.orchestrator.report import TRADE_OFF, TrialGroup, TrialRow, competing, front_of, hypervolume
from fedveil.orchestrator.run.checkpoint import Pictures, load_records
from fedveil.orchestrator.run.paths import ExperimentPaths
from fedveil.orchestrator.run.private import private_file

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class RunResult:
    """Finished trials, one for each setting and seed.

    Attributes:
        experiment: its name.
        rows: the trials' parameters and final metrics.
        root: the experiment's folder.
        uri: of MLflow, where they are recorded; it may hold a password, and is not shown.
    """

    experiment: str
    rows: tuple[TrialRow, ...]
    root: Path
    uri: str = field(repr=False)

    @property
    def folders(self) -> dict[str, Path]:
        """Where each trial's files are, by its name."""
        paths = ExperimentPaths(self.root)
        return {row.name: paths.trial(row.name).folder for row in self.rows}

    @property
    def records(self) -> dict[str, tuple[PrivacyRecord, ...]]:
        """The scores of each attack on each victim, by the name of the trial; of finished trials, read from their files.

        A trial whose file is damaged or gone is left out, and a warning says so.
        """
        paths = ExperimentPaths(self.root)
        found = {row.name: _readable(paths.trial(row.name).records, load_records) for row in self.rows if row.finished}
        return {name: records for name, records in found.items() if records is not None}


@dataclass(frozen=True)
class SweepResult(RunResult):
    """A finished sweep.

    Attributes:
        front: the settings that no other beats in accuracy and reconstruction error.
        metrics: ``sweep/...`` for the parent run.
        files: figures that were drawn.
    """

    front: tuple[TrialGroup, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    files: tuple[Path, ...] = ()


def summarise_sweep(experiment: str, rows: Sequence[TrialRow], paths: ExperimentPaths, uri: str) -> SweepResult:
    """Draw the Pareto figure and the comparison of the victims, and pick the front."""
    result = SweepResult(experiment, tuple(rows), paths.root, uri, front=tuple(front_of(rows)))
    figures = []
    if any(row.finished and TRADE_OFF.keys() <= row.metrics.keys() for row in rows):
        from fedveil.orchestrator.report.figures import pareto_figure

        figures.append(private_file(paths.root / "pareto.png"))
        pareto_figure(rows, figures[0], title=f"{experiment}: accuracy against reconstruction error")
        figures += _comparison(result, paths)
    metrics = {
        "sweep/trials": float(len(rows)),
        "sweep/failed": float(sum(row.status == "FAILED" for row in rows)),
        "sweep/pareto_front": float(len(result.front)),
        "sweep/hypervolume": hypervolume(competing(rows), TRADE_OFF, dict.fromkeys(TRADE_OFF, 0.0)),
    }
    return replace(result, metrics=metrics, files=tuple(figures))


def _readable(file: Path, load: Callable[[Path], T]) -> T | None:
    """Return what is in a finished trial's file; None, with a warning, where it is damaged or gone: its numbers stand."""
    try:
        return load(file)
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        EOFError,
        RuntimeError,
        UnpicklingError,
    ) as error:
        _log.warning(
            "%s is damaged or gone, and left out (%s); MLflow has the trial's numbers", file, first_line(error)
        )
        return None


def _comparison(result: SweepResult, paths: ExperimentPaths) -> list[Path]:
    """Draw the same victims under each defence; trials with other victims, or without pictures, are left out."""
    from fedveil.orchestrator.report.comparison import comparison_figure, representatives

    panels = {}
    originals: Tensor | None = None
    for row in (setting.members[0] for setting in representatives(result.rows)):
        file = paths.trial(row.name).pictures
        pictures = _readable(file, Pictures.load) if file.exists() else None
        records = _readable(paths.trial(row.name).records, load_records) if pictures is not None else None
        if pictures is None or records is None:
            continue
        originals = pictures.originals if originals is None else originals
        if not torch.equal(originals, pictures.originals):
            continue
        shown = {record.attack for record in records if not record.threat_model.trained_images}
        attack = row.headline_attack(among=shown - {BASELINE_ATTACK})
        if attack is not None:
            panels[row.title] = (pictures.trained, attack, pictures.reconstructions[attack])
    if originals is None or not panels:
        return []
    figure = private_file(paths.root / "comparison.png")
    comparison_figure(figure, originals, panels)
    return [figure]
