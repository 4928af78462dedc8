"""Callbacks that keep a trial's results: as files in its folder, and in MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedveil.attacks.audit.figures import draw_reconstructions, draw_rows, save
from fedveil.attacks.model_inversion.audit import InversionReport
from fedveil.fl.rounds import RoundReport
from fedveil.orchestrator.config import Experiment
from fedveil.orchestrator.config.yaml import dump
from fedveil.orchestrator.metrics import CURVES
from fedveil.orchestrator.run.callbacks import TrialCallback, TrialResult
from fedveil.orchestrator.run.checkpoint import Pictures, Progress, save_records
from fedveil.orchestrator.run.paths import TrialPaths
from fedveil.orchestrator.run.private import private_file, private_folder
from fedveil.orchestrator.run.setup import Setup
from fedveil.orchestrator.tracking import TrialTracker, without_passwords
from fedveil.orchestrator.tracking.names import INVERSION_GRID, RECONSTRUCTION_GRID


def resolved(experiment: Experiment) -> dict[str, Any]:
    """Return the whole configuration, without the password of a tracking address."""
    return dict(without_passwords(experiment.model_dump(mode="json")))


class Files(TrialCallback):
    """Writes ``experiment.yaml``, ``metrics.json``, the records and the pictures into the trial's folder.

    Args:
        paths: of the trial.
        experiment: what runs.
        setup: its images.
    """

    def __init__(self, paths: TrialPaths, experiment: Experiment, setup: Setup) -> None:
        self._paths = paths
        self._classes = setup.data.classes
        private_folder(paths.folder)
        text = dump(resolved(experiment))
        private_file(paths.folder / "experiment.yaml").write_text(text, encoding="utf-8")

    def on_inversion(self, report: InversionReport) -> None:
        """Draw what the released model's attackers made beside private images of the same classes."""
        rows = {"a client's image": report.shown.floats()}
        rows |= {label.replace("_", " "): outcome.images for label, outcome in report.outcomes.items()}
        captions = [self._classes[label] for label in report.shown.labels.tolist()]
        save(draw_rows(None, rows, captions), private_file(self._paths.inversions))

    def on_final(self, result: TrialResult) -> None:
        """Write them."""
        text = json.dumps(dict(result.metrics), indent=2) + "\n"
        private_file(self._paths.folder / "metrics.json").write_text(text, encoding="utf-8")
        records, pictures = result.progress.records, result.progress.pictures
        save_records(records, self._paths.records)
        if pictures is None:
            return
        pictures.save(private_file(self._paths.pictures))
        labels = {record.victim: record.label for record in records}
        captions = [self._classes[labels[victim]] for victim in sorted(labels)[: len(pictures.originals)]]
        figure = draw_reconstructions(pictures.originals, pictures.trained, pictures.reconstructions, captions)
        save(figure, private_file(self._paths.grid))


class Tracking(TrialCallback):
    """Records the trial in MLflow, as far as its tracker lets things out. It comes after `Files`, whose files it takes.

    Args:
        tracker: of the trial's run.
        paths: of the trial.
        experiment: what runs.
    """

    def __init__(self, tracker: TrialTracker, paths: TrialPaths, experiment: Experiment) -> None:
        self._tracker = tracker
        self._paths = paths
        self._audited = experiment.audit.round_numbers(experiment.fl.rounds)
        tracker.log_dict(resolved(experiment), "experiment.yaml")

    def on_round(self, progress: Progress, report: RoundReport, running: Mapping[str, float]) -> None:
        """Record a point of each curve."""
        points = {metric.name: running[metric.name] for metric in CURVES}
        self._tracker.log_curve(points, step=progress.state.round - 1)

    def on_inversion(self, report: InversionReport) -> None:
        """Record the figure."""
        self._tracker.log_image(self._paths.inversions, INVERSION_GRID, step=0)

    def on_final(self, result: TrialResult) -> None:
        """Record final scalars, the victims' records and pictures."""
        self._tracker.log_final(result.metrics)
        self._tracker.log_file(self._paths.records)
        if result.progress.pictures is not None:
            self._tracker.log_image(self._paths.grid, RECONSTRUCTION_GRID, step=self._audited[0])
            for key, image in victim_images(result.progress.pictures).items():
                self._tracker.log_image(image, key, step=self._audited[0])


def victim_images(pictures: Pictures) -> dict[str, NDArray[np.floating[Any]]]:
    """Return each victim's images by the key under which they are recorded: ``victim/<number>_<what>``."""
    kinds = {"original": pictures.originals, "trained_on": pictures.trained, **pictures.reconstructions}
    return {
        f"victim/{number}_{kind}": _as_array(images[number])
        for number in range(len(pictures.originals))
        for kind, images in kinds.items()
    }


def _as_array(image: Tensor) -> NDArray[np.floating[Any]]:
    """Return (C, H, W) as (H, W) or (H, W, 3)."""
    array: NDArray[np.floating[Any]] = np.moveaxis(image.numpy(), 0, -1)
    return array[..., 0] if array.shape[-1] == 1 else array
