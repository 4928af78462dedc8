"""One trial's run: its curves, its final scalars, its pictures."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from fedveil.orchestrator.metrics import CURVES, FINAL
from fedveil.orchestrator.tracking.images import as_picture, save_as_mlflow_image
from fedveil.orchestrator.tracking.names import IMAGES, SWEPT, check_names
from fedveil.orchestrator.tracking.recorder import RunRecorder
from fedveil.orchestrator.tracking.settings import TrackingSettings

_FINAL = [metric.name for metric in FINAL]
_CURVES = [metric.name for metric in CURVES]


class TrialTracker(RunRecorder):
    """The child run of one trial. See `RunRecorder` for what it is as a context manager.

    Args:
        settings: where to.
        parent_run_id: the sweep's `run_id`.
        name: the run's name.
        params: flat, for example ``{"defense.strength": 1.0}``.
        swept: the ``params`` that the sweep varies; the numbers among them become metrics ``swept/<key>``.
        tags: more tags.
        run_id: `run_id` out of the checkpoint, to continue the same run; points that it has are not repeated.
    """

    def __init__(
        self,
        settings: TrackingSettings,
        *,
        parent_run_id: str | None,
        name: str,
        params: Mapping[str, object],
        swept: Collection[str] = (),
        tags: Mapping[str, str] | None = None,
        run_id: str | None = None,
    ) -> None:
        varied = {SWEPT + key: params[key] for key in sorted(swept)}
        numbers = {
            key: float(value)
            for key, value in varied.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        check_names("final metric", numbers, _FINAL)
        super().__init__(
            settings,
            kind="trial",
            name=name,
            parent=parent_run_id,
            params=params,
            tags=tags or {},
            run_id=run_id,
        )
        with self._beginning():
            self._points(numbers, step=0)

    def log_curve(self, values: Mapping[str, float], step: int) -> None:
        """Record one point of some curves at round ``step``; a point that the run has at that step stays.

        Raises:
            ValueError: a name is not one of `metrics.CURVES`.
        """
        check_names("curve", values, _CURVES)
        self._points(values, step)

    def log_final(self, values: Mapping[str, float]) -> None:
        """Record final scalars, each once per trial. A NaN or infinite one is left out, and a tag says so.

        Raises:
            ValueError: a name is not one of `metrics.FINAL`.
        """
        check_names("final metric", values, _FINAL)
        self._points(values, step=0)

    def log_image(self, image: Path | NDArray[np.generic], key: str, step: int) -> None:
        """Record a picture if the settings let it out: ``victim/*`` only under `all`, nothing under `none`.

        Args:
            image: a picture file, or an array (H, W) or (H, W, 3), uint8 or floats in [0, 1].
            key: names the picture over all rounds and trials; MLflow's image grid compares by it.
            step: the round.

        Raises:
            ValueError: the key or the array is not allowed.
        """
        check_names("image", [key], IMAGES)
        picture = as_picture(image)
        if not self.settings.images.allows(key):
            return
        try:
            with TemporaryDirectory() as scratch:
                for path in save_as_mlflow_image(picture, key, step, Path(scratch)):
                    self.log_file(path, "images")
        except OSError as error:
            self._lost(key, error)
        self.set_tags({"mlflow.loggedImages": "True"})
