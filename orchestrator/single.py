"""One trial without Tune: what ``fedveil run`` does."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from orchestrator.config import Experiment
from orchestrator.executor import RayExecutor
from orchestrator.places import SweepFiles, tracking_settings
from orchestrator.report import TrialRow
from orchestrator.stage import set_stage
from orchestrator.tracking import TrialTracker
from orchestrator.trial import Trial, params_of


def run_single(experiment: Experiment, console: Console) -> TrialRow:
    """Run the experiment's one trial on the connected Ray cluster.

    Raises:
        FedveilError: the trial does not fit the cluster.
    """
    files = SweepFiles.of(experiment)
    stage = set_stage(experiment)
    tracking = tracking_settings(experiment, files, published=stage.data.published, deliver=True)
    params = params_of(experiment)
    name = f"{params['defense.name']}-seed{experiment.seed}"
    resources = experiment.resources

    def say(text: str) -> None:
        console.print(f"[bold]{name}[/bold]  {escape(text)}", soft_wrap=True)

    say(f"starting {resources.workers} worker slot(s), recording in {tracking.uri}")
    with (
        RayExecutor(
            resources.workers,
            cpus_per_worker=resources.cpus_per_worker,
            gpus_per_worker=resources.gpus_per_worker,
        ) as executor,
        TrialTracker(tracking, parent_run_id=None, name=name, params=params) as tracker,
    ):
        final = Trial(experiment, executor, files.trial(name), say).run(tracker)
    return TrialRow(name, "FINISHED", params, final)
