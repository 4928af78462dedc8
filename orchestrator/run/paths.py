"""Where an experiment writes: its folder below ``runs_dir``, and its MLflow record."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fedveil.fl.data.search import in_job_copy
from fedveil.fl.errors import FedveilError
from fedveil.orchestrator.config import Experiment
from fedveil.orchestrator.config.uri import is_address, runs_fault
from fedveil.orchestrator.run.private import private_folder
from fedveil.orchestrator.tracking import ImagePolicy, TrackingSettings, without_passwords
from fedveil.orchestrator.tracking.logins import remember

RUNS = "runs"
RUNS_VARIABLE = "FEDVEIL_RUNS"


@dataclass(frozen=True)
class TrialPaths:
    """Where a trial writes.

    Attributes:
        folder: its results.
        cache: modules trained on public images alone, shared by all trials of this machine.
    """

    folder: Path
    cache: Path

    @property
    def records(self) -> Path:
        """Its privacy records, JSON."""
        return self.folder / "privacy_records.json"

    @property
    def pictures(self) -> Path:
        """Its first victims' images, tensors."""
        return self.folder / "pictures.pt"

    @property
    def grid(self) -> Path:
        """The same as a figure."""
        return self.folder / "reconstruction.png"

    @property
    def inversions(self) -> Path:
        """What attacks on the released model made, as a figure."""
        return self.folder / "inversion.png"


@dataclass(frozen=True)
class ExperimentPaths:
    """Where a sweep writes, absolute.

    Attributes:
        root: ``runs/<experiment>``, or below the folder that ``runs_dir`` or the variable ``FEDVEIL_RUNS`` names.
        copy: address of a copy of it, where one of these gives an address.
    """

    root: Path
    copy: str | None = None

    @classmethod
    def of(cls, experiment: Experiment) -> ExperimentPaths:
        """Return the paths of an experiment; call it in the user's folder.

        Raises:
            FedveilError: the folder would lie in a Ray job's temporary copy of that folder, lost with the job, or there is a
                file at its place.
        """
        asked = experiment.runs_dir or os.environ.get(RUNS_VARIABLE) or RUNS
        what = "runs_dir" if experiment.runs_dir or RUNS_VARIABLE not in os.environ else RUNS_VARIABLE
        fault = runs_fault(asked)
        if fault is not None:
            raise FedveilError(f"{what}: given {without_passwords(asked)!r}; {fault}")
        if is_address(asked):
            place, mark, query = asked.partition("?")
            copy = f"{place.rstrip('/')}/{experiment.experiment}{mark}{query}"
            return cls(Path(RUNS).absolute() / experiment.experiment, copy)
        try:
            folder = Path(asked).expanduser().absolute()
            there = next(one for one in (folder, *folder.parents) if one.exists())
            usable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
        except (OSError, RuntimeError) as error:  # also of `expanduser`: a home folder that is not known
            raise FedveilError(f"{what}: {asked!r} cannot be looked up ({error})") from error
        if in_job_copy(folder):
            raise FedveilError(
                f"{what}: this job runs in a temporary copy of your folder, where its runs ({asked}) would be lost; by"
                f" --runs-dir, runs_dir or {RUNS_VARIABLE} name a folder that outlives it, or an address such as"
                " s3://bucket/runs"
            )
        if not usable:
            raise FedveilError(f"{what}: {asked!r}: {there} is no folder that can be written into")
        return cls(folder / experiment.experiment)

    @property
    def tune(self) -> Path:
        """Tune's own storage, a folder per sweep: checkpoints and state."""
        return self.root / "tune"

    @property
    def cache(self) -> Path:
        """Modules trained on public images alone, shared by all experiments."""
        return self.root.parent / "cache"

    @property
    def checkpoints(self) -> Path:
        """Those of runs, a folder per run."""
        return self.root / "checkpoints"

    def trial(self, name: str) -> TrialPaths:
        """Return the paths of a trial."""
        return TrialPaths(folder=self.root / "trials" / name, cache=self.cache)

    def new_trial(self, name: str) -> tuple[str, TrialPaths]:
        """Make the folder of another trial; return its name, ``name-2`` and so on where others have it, and paths."""
        number = 1
        while True:
            numbered = name if number == 1 else f"{name}-{number}"
            paths = self.trial(numbered)
            try:
                private_folder(self.root)
                private_folder(paths.folder.parent)
                paths.folder.mkdir()
            except FileExistsError:
                number += 1
            else:
                return numbered, paths


def tracking_settings(experiment: Experiment, paths: ExperimentPaths, *, published: bool) -> TrackingSettings:
    """Return where this experiment is recorded, by a spool that `delivering` empties; call it in the user's folder.

    Raises:
        FedveilError: the record would be a file in a Ray job's temporary copy of that folder, lost with the job.
    """
    images = experiment.tracking.images or (ImagePolicy.GRID if published else ImagePolicy.NONE)
    uri = experiment.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////") and in_job_copy(Path.cwd()):
        raise FedveilError(
            "tracking.uri: this job runs in a temporary copy of your folder, where the record would be lost; start an"
            " MLflow server and give its address by tracking.uri or MLFLOW_TRACKING_URI"
        )
    remember(uri)  # for what earlier runs could not deliver there
    return TrackingSettings(experiment=experiment.experiment, uri=uri, spool=paths.root / "spool", images=images)
